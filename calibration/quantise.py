"""Q/DQ graphs: ONNX Runtime's quantiser edits the graph, with scales and layers that are chosen elsewhere.

Added to it here: scales are given rather than taken from its own calibrators, FP8 scales follow from the largest
weight, other nodes that read a layer's input read it unchanged, and module paths are kept.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import (
    OPERATORS,
    Layer,
    StageGraph,
    layers_by_name,
    load_weights,
    transpose_weights,
)
from bitdance_edge.calibration.ranges import FORMATS, GROUP
from bitdance_edge.calibration.sessions import session_of, with_outputs
from bitdance_edge.runtime.bundle.module_paths import MODULE_PATH

TYPES = {"int8": QuantType.QInt8, "fp8": QuantType.QFLOAT8E4M3FN}
FOUR_BIT_OPSET = 21  # the first whose DequantizeLinear takes 4-bit integers in groups


@dataclass(frozen=True)
class Variants:
    """The stages to be quantised, with the limits of their scales; any choice of formats makes a variant.

    A variant is asked for by ``formats``: name of a layer -> "int8", "fp8" or "int4"; others stay as exported.

    Attributes:
        graphs: by stage.
        limits: name of a layer -> largest activation that its scale reaches, of those whose activations have one.
        threads: of each session; None: one a physical core.
    """

    graphs: Mapping[str, StageGraph]
    limits: Mapping[str, float]
    threads: int | None

    def graph(self, stage: str, formats: Mapping[str, str]) -> ModelProto:
        """One stage of a variant."""
        return quantised_graph(self.graphs[stage], formats, self.limits)

    def session(self, stage: str, formats: Mapping[str, str], outputs: Sequence[str] = ()) -> Any:
        """The session of one stage of a variant, which outputs these inner tensors too."""
        model = self.graph(stage, formats)
        return session_of(with_outputs(model, outputs) if outputs else model, self.graphs[stage].folder, self.threads)

    def sessions(self, formats: Mapping[str, str]) -> dict[str, Any]:
        """Sessions of the stages in which a variant differs from the bundle."""
        changed = {layer.stage for name, layer in layers_by_name(self.graphs).items() if name in formats}
        return {stage: self.session(stage, formats) for stage in self.graphs if stage in changed}


def quantised_graph(graph: StageGraph, formats: Mapping[str, str], limits: Mapping[str, float]) -> ModelProto:
    """Return a copy of a stage's graph with the layers quantised that have a format; other weights stay in their file.

    Args:
        formats: name of a layer -> "int8", "fp8" or "int4".
        limits: name of a layer -> the largest activation that its scale reaches; not needed for int4.

    Raises:
        CalibrationError: 4-bit weights in a graph of an opset that has none.
    """
    model = ModelProto()
    model.CopyFrom(graph.model)
    add_infer_metadata(model)  # the exporter inferred all shapes; the quantiser would do it again, on files
    chosen = [layer for layer in graph.layers if layer.name in formats]
    modules = {node.name: _module_path(node) for node in model.graph.node}
    load_weights(model, graph.folder, (layer.weight for layer in chosen))
    transpose_weights(model, chosen)
    for precision in FORMATS:
        wanted = [layer for layer in chosen if formats[layer.name] == precision]
        if wanted:
            model = _with_pairs(model, wanted, precision, limits)
    wanted = [layer for layer in chosen if formats[layer.name] == "int4"]
    if wanted:
        model = _with_groups(model, wanted)
    _restore_module_paths(model, modules)
    del model.metadata_props[:]
    return model


def _with_pairs(model: ModelProto, layers: list[Layer], precision: str, limits: Mapping[str, float]) -> ModelProto:
    """Put Q and DQ before both inputs of these layers."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    zero = np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(TYPES[precision].tensor_type))
    largest = FORMATS[precision].largest
    ranges: dict[str, TensorData | tuple] = {}
    overrides: dict[str, list[dict]] = {}
    for layer in layers:
        number = onnx.helper.tensor_dtype_to_np_dtype(weights[layer.weight].data_type).type
        limit = max(limits[other.name] for other in layers if other.activation == layer.activation)
        ranges[layer.activation] = TensorData(lowest=number(-limit), highest=number(limit))
        overrides[layer.activation] = [{"scale": _scale(limit, largest, number), "zero_point": zero}]
        if precision == "fp8":  # the quantiser's own rule, from the standard deviation, clips large weights
            top = float(np.abs(numpy_helper.to_array(weights[layer.weight])).max())
            overrides[layer.weight] = [{"scale": _scale(top, largest, number), "zero_point": zero}]
    quantizer = QDQQuantizer(
        model,
        precision == "int8",  # weights per channel
        False,
        TYPES[precision],
        TYPES[precision],
        TensorsData(CalibrationMethod.MinMax, ranges),
        [layer.node for layer in layers],
        [],
        list(OPERATORS),
        {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # ONNX Runtime makes no INT8 product of a node whose DequantizeLinear is read by others too.
            "DedicatedQDQPair": precision == "int8",
            "QuantizeBias": False,  # TensorRT dequantises no int32
            "QDQDisableWeightAdjustForInt32Bias": True,
            "OpTypesToExcludeOutputQuantization": list(OPERATORS),
            "TensorQuantOverrides": overrides,
        },
    )
    made = quantizer.quantize_model()
    _undo_for_others(made, {layer.activation for layer in layers}, {layer.node for layer in layers})
    return made


def _scale(limit: float, largest: float, number: type) -> np.ndarray:
    # float16 has no smaller normal number, and a scale of zero would divide by it.
    return np.array(max(number(limit / largest), np.finfo(number).tiny), number)


def _undo_for_others(model: ModelProto, activations: set[str], quantised: set[str]) -> None:
    """Let nodes that are not quantised read an activation itself: the quantiser rewires all its readers."""
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name in quantised or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for i, name in enumerate(node.input):
            after = producers.get(name)
            if after is not None and after.op_type == "DequantizeLinear":
                before = producers.get(after.input[0])
                if before is not None and before.input[0] in activations:
                    node.input[i] = before.input[0]


def _with_groups(model: ModelProto, layers: list[Layer]) -> ModelProto:
    """Give these layers 4-bit weights in groups."""
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset < FOUR_BIT_OPSET:
        raise CalibrationError(
            f"{layers[0].stage} is of opset {opset}, and 4-bit weights need {FOUR_BIT_OPSET}: choose int8, or export "
            "without --opset 20"
        )
    made = _grouped(model, [layer.node for layer in layers])
    renamed = {f"{layer.node}_matmul_Q4": layer.node for layer in layers}
    for node in made.graph.node:
        node.name = renamed.get(node.name, node.name)
    unused = {layer.weight for layer in layers} - {name for node in made.graph.node for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name not in unused]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


def _grouped(model: ModelProto, nodes: list[str]) -> ModelProto:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    from onnxruntime.quantization import matmul_nbits_quantizer as weight_only

    root.setLevel(level)  # importing it sets up logging for the whole program, down to a line a node
    root.handlers[:] = handlers
    weight_only.logger.setLevel(logging.WARNING)
    config = weight_only.DefaultWeightOnlyQuantConfig(
        block_size=GROUP, is_symmetric=True, quant_format=QuantFormat.QDQ, bits=4
    )
    others = [node.name for node in model.graph.node if node.name not in nodes]
    quantizer: Any = weight_only.MatMulNBitsQuantizer(model, nodes_to_exclude=others, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def _module_path(node: NodeProto) -> str | None:
    return next((entry.value for entry in node.metadata_props if entry.key == MODULE_PATH), None)


def _restore_module_paths(model: ModelProto, modules: Mapping[str, str | None]) -> None:
    for node in model.graph.node:
        path = modules.get(node.name)
        if path is not None and _module_path(node) is None:
            node.metadata_props.add(key=MODULE_PATH, value=path)
