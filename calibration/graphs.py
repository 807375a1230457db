"""Q/DQ graphs: ONNX Runtime's quantiser does the surgery, with scales and layers that are chosen elsewhere.

What is added to it here: scales as given rather than from its own calibrators, FP8 scales from the largest weight,
tensors that other nodes share with a layer stay as they were for those nodes, and module paths are kept.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnxruntime.quantization import QuantFormat, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.formats import FORMATS, GROUP
from bitdance_edge.calibration.layers import OPERATORS, Layer
from bitdance_edge.runtime.bundle.module_paths import MODULE_PATH

TYPES = {"int8": QuantType.QInt8, "fp8": QuantType.QFLOAT8E4M3FN}
FOUR_BIT_OPSET = 21  # the first whose DequantizeLinear takes 4-bit integers in groups
INLINE_BYTES = 1024  # larger tensors go to the file of weights


def read_skeleton(path: Path) -> ModelProto:
    """A graph with its weights left in their file."""
    return onnx.load(path, load_external_data=False)


def quantized_graph(
    skeleton: ModelProto, folder: Path, layers: list[Layer], formats: Mapping[str, str], limits: Mapping[str, float]
) -> ModelProto:
    """A copy of a stage's graph with these layers quantised; all other weights stay in their file.

    Args:
        skeleton: the graph, from ``read_skeleton``.
        folder: where its file of weights is.
        layers: of the stage.
        formats: name of a layer -> "int8", "fp8" or "int4"; layers without one stay as they are.
        limits: name of a layer -> the largest activation that its scale shall reach; not needed for int4.

    Raises:
        CalibrationError: 4-bit weights in a graph of an opset that has none.
    """
    model = ModelProto()
    model.CopyFrom(skeleton)
    add_infer_metadata(model)  # the exporter inferred all shapes; the quantiser would do it again, on files
    chosen = [layer for layer in layers if layer.name in formats]
    modules = {node.name: _paths(node) for node in model.graph.node}
    _load(model, folder, {layer.weight for layer in chosen})
    turn_weights(model, [layer for layer in chosen if layer.transposed])
    for precision in FORMATS:
        wanted = [layer for layer in chosen if formats[layer.name] == precision]
        if wanted:
            model = _with_pairs(model, wanted, precision, limits)
    wanted = [layer for layer in chosen if formats[layer.name] == "int4"]
    if wanted:
        model = _with_groups(model, wanted)
    _restore_paths(model, modules)
    del model.metadata_props[:]
    return model


def write_graph(model: ModelProto, folder: Path, path: Path) -> None:
    """Write a graph, some of whose weights may still be in a file of ``folder``, with its own file of weights."""
    _load(model, folder, {tensor.name for tensor in model.graph.initializer})
    weights = path.with_name(f"{path.name}.data")
    onnx.save(model, path, save_as_external_data=True, location=weights.name, size_threshold=INLINE_BYTES)


def turn_weights(model: ModelProto, layers: list[Layer]) -> None:
    """Give these layers, whose weights are loaded and stand behind a Transpose, the transposed weights themselves."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for layer in layers:
        turned = numpy_helper.from_array(numpy_helper.to_array(tensors[layer.weight]).T.copy(), layer.weight)
        tensors[layer.weight].CopyFrom(turned)
        transpose = next(node for node in model.graph.node if nodes[layer.node].input[1] in node.output)
        nodes[layer.node].input[1] = layer.weight
        model.graph.node.remove(transpose)


def load_weight(model: ModelProto, folder: Path, name: str) -> np.ndarray:
    """One initialiser of a graph, read from its file if it is there."""
    _load(model, folder, {name})
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def _load(model: ModelProto, folder: Path, names: set[str]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name in names and uses_external_data(tensor):
            tensor.raw_data = _stored(ExternalDataInfo(tensor), folder)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def _stored(info: ExternalDataInfo, folder: Path) -> bytes:
    """The bytes of a tensor. onnx's own reader refuses files with several names, as linked weights have."""
    with (folder / Path(info.location).name).open("rb") as file:  # beside the graph, whatever it says
        file.seek(info.offset or 0)
        return file.read(-1 if info.length is None else info.length)


def _with_pairs(model: ModelProto, layers: list[Layer], precision: str, limits: Mapping[str, float]) -> ModelProto:
    """Q and DQ before both inputs of these layers."""
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
        if precision == "fp8":  # the quantiser's own rule, from the standard deviation, cuts large weights off
            held = float(np.abs(numpy_helper.to_array(weights[layer.weight])).max())
            overrides[layer.weight] = [{"scale": _scale(held, largest, number), "zero_point": zero}]
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
            # ONNX Runtime makes no INT8 product of one whose DequantizeLinear others read too.
            "DedicatedQDQPair": precision == "int8",
            "QuantizeBias": False,  # TensorRT dequantises no int32
            "QDQDisableWeightAdjustForInt32Bias": True,
            "OpTypesToExcludeOutputQuantization": list(OPERATORS),
            "TensorQuantOverrides": overrides,
        },
    )
    made = quantizer.quantize_model()
    nodes = {layer.node for layer in layers}
    _undo_for_others(made, {layer.activation for layer in layers}, nodes)
    return made


def _scale(limit: float, largest: float, number: type) -> np.ndarray:
    # float16 has no smaller normal number, and a scale of zero would divide by it.
    return np.array(max(number(limit / largest), np.finfo(number).tiny), number)


def _undo_for_others(model: ModelProto, activations: set[str], quantized: set[str]) -> None:
    """Nodes that are not quantised read an activation itself: the quantiser rewires all that read it."""
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name in quantized or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for i, name in enumerate(node.input):
            after = producers.get(name)
            if after is not None and after.op_type == "DequantizeLinear":
                before = producers.get(after.input[0])
                if before is not None and before.input[0] in activations:
                    node.input[i] = before.input[0]


def _with_groups(model: ModelProto, layers: list[Layer]) -> ModelProto:
    """4-bit weights in groups before these layers."""
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

    root.setLevel(level)  # importing it sets up logging for the whole program, and it tells of every node
    root.handlers[:] = handlers
    weight_only.logger.setLevel(logging.WARNING)
    config = weight_only.DefaultWeightOnlyQuantConfig(
        block_size=GROUP, is_symmetric=True, quant_format=QuantFormat.QDQ, bits=4
    )
    others = [node.name for node in model.graph.node if node.name not in nodes]
    quantizer: Any = weight_only.MatMulNBitsQuantizer(model, nodes_to_exclude=others, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def _paths(node: NodeProto) -> str | None:
    return next((entry.value for entry in node.metadata_props if entry.key == MODULE_PATH), None)


def _restore_paths(model: ModelProto, modules: Mapping[str, str | None]) -> None:
    for node in model.graph.node:
        path = modules.get(node.name)
        if path is not None and _paths(node) is None:
            node.metadata_props.add(key=MODULE_PATH, value=path)
