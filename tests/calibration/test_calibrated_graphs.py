"""Q/DQ graphs: on both inputs of every layer, weights stored small, all else unchanged."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from calibrating import Calibrated
from onnx import TensorProto

from bitdance_edge.calibration.graphs import OPERATORS, StageGraph, load_weight
from bitdance_edge.calibration.quantise import Variants, quantised_graph
from bitdance_edge.calibration.sessions import session_of
from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
from bitdance_edge.runtime.bundle.module_paths import innermost_module
from bitdance_edge.runtime.bundle.stage_names import WINDOW_STAGES

STORED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN, "int4": TensorProto.INT4}
Get = Callable[[str], Calibrated]


@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_every_layer_is_quantised_on_both_inputs_and_stored_small(calibrated: Get, precision: str) -> None:
    bundle = calibrated(precision).bundle
    quantised = 0
    for name, stage in bundle.stages.items():
        graph = onnx.load(bundle.folder / stage.graph.path).graph
        weights = {tensor.name: tensor for tensor in graph.initializer}
        producers = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            if node.op_type not in OPERATORS:
                continue
            weight = producers[node.input[1]]
            assert weight.op_type == "DequantizeLinear", f"{name} {node.name}"
            stored = weights[weight.input[0]].data_type
            activation = producers.get(node.input[0])
            if precision == "int4" and node.op_type == "MatMul":  # INT8 where it is narrow, or not of whole groups
                assert activation is None or activation.op_type != "DequantizeLinear"
                assert stored in (TensorProto.INT4, TensorProto.INT8)
            else:
                assert stored == STORED["int8" if precision == "int4" else precision]
                assert activation is not None and activation.op_type == "DequantizeLinear"
                assert producers[activation.input[0]].op_type == "QuantizeLinear"
            assert innermost_module(node.metadata_props)
            quantised += 1
    assert quantised == len(calibrated(precision).findings.chosen.formats) == 69


@pytest.mark.parametrize(("precision", "narrow"), [("int4", "int8"), ("nvfp4", "fp8")])
def test_matrices_that_read_and_make_bits_get_eight(
    digits: Callable[[str], Bundle], precision: str, narrow: str
) -> None:
    layers = {layer.name: layer for layer in StageGraph.read(digits("fp32"), "head").layers}
    assert layers["head:head.input_proj"].format_for(precision) == narrow
    assert layers["head:head.final_layer.linear"].format_for(precision) == narrow
    assert layers["head:head.res_blocks.0.w1"].format_for(precision) == precision
    assert not layers["head:head.input_proj"].rounds_input(precision)


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.32), ("fp8", 0.30), ("int4", 0.25)])
def test_files_shrink(calibrated: Get, digits: Callable[[str], Bundle], precision: str, share: float) -> None:
    before, after = digits("fp32").stages, calibrated(precision).bundle.stages
    for name in ("backbone", "head"):
        files = sum(file.bytes for file in after[name].files)
        assert files < share * before[name].bytes


def test_int8_weights_are_per_channel_and_biases_stay(calibrated: Get) -> None:
    bundle = calibrated("int8").bundle
    graph = onnx.load(bundle.folder / bundle.stages["decoder"].graph.path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 13
    for node in convolutions:
        scale = weights[producers[node.input[1]].input[1]]
        assert list(scale.dims) == [weights[producers[node.input[1]].input[0]].dims[0]]
        assert all(weights[name].data_type == TensorProto.FLOAT for name in node.input[2:])


@pytest.mark.parametrize(("precision", "rounded"), [("int8", True), ("fp8", False)])
def test_results_of_int8_convolutions_are_rounded_but_for_the_last(
    calibrated: Get, precision: str, rounded: bool
) -> None:
    """What makes pixels, or the signs that are bits, keeps all its digits."""
    bundle = calibrated(precision).bundle
    for stage in ("decoder", "encoder"):
        graph = onnx.load(bundle.verified(stage), load_external_data=False).graph
        readers = {name: node for node in graph.node for name in node.input}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        behind = [readers[node.output[0]] for node in convolutions]
        found = [codes.name == f"{node.name}.result.codes" for node, codes in zip(convolutions, behind, strict=True)]
        assert found == [rounded] * (len(found) - 1) + [False]
        for node, codes in zip(convolutions[:-1] if rounded else [], behind, strict=False):
            back = readers[codes.output[0]]
            assert back.op_type == "DequantizeLinear"
            assert list(back.input[1:]) == list(codes.input[1:])
            assert innermost_module(back.metadata_props) == innermost_module(node.metadata_props)


def test_what_shares_a_tensor_with_a_layer_reads_the_tensor_itself(digits: Callable[[str], Bundle]) -> None:
    """The encoder's strided convolution feeds a convolution and a norm; only the convolution may see it rounded."""
    encoder = StageGraph.read(digits("fp32"), "encoder")
    shared = next(layer for layer in encoder.layers if "nin_shortcut" in layer.name)
    readers = [node.name for node in encoder.model.graph.node if shared.activation in node.input]
    assert len(readers) > 1
    made = quantised_graph(encoder, {shared.name: "int8"}, {shared.name: 4.0}).model
    still = [node.name for node in made.graph.node if shared.activation in node.input]
    assert set(readers) - {shared.node} <= set(still)
    assert shared.node not in still


@pytest.mark.parametrize(("stage", "shares"), [("head", False), ("modulation", True)])
def test_every_int8_product_has_a_pair_of_its_own_and_is_fused_on_the_cpu(
    calibrated: Get, tmp_path: Path, stage: str, shares: bool
) -> None:
    """Where layers shared one, ONNX Runtime would unpack their weights at every launch and multiply in float32."""
    bundle = calibrated("int8").bundle
    path = bundle.verified(stage)
    graph = onnx.load(path, load_external_data=False).graph
    products = [node for node in graph.node if node.op_type in OPERATORS]
    pairs = [node.input[0] for node in products]
    assert len(set(pairs)) == len(pairs) > 1
    producers = {output: node for node in graph.node for output in node.output}
    quantized = [producers[producers[name].input[0]].input[0] for name in pairs]
    assert (len(set(quantized)) < len(quantized)) == shares
    options = cpu_options(1, "int8")
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    import_onnxruntime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fused = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx", load_external_data=False).graph.node)
    assert fused["MatMulIntegerToFloat"] == len(products)
    assert not fused["MatMul"] and not fused["DequantizeLinear"]


def test_rounding_is_that_of_the_operators(digits: Callable[[str], Bundle]) -> None:
    """INT8 of one layer against numpy: activations per tensor, weights per output, products summed exactly."""
    tokens = StageGraph.read(digits("fp32"), "tokens")
    layer = tokens.layers[0]
    made = Variants({"tokens": tokens}, {layer.name: 1.0}, {}, 1).graph("tokens", {layer.name: "int8"})
    made.graph.output.append(onnx.helper.make_tensor_value_info("val_4", TensorProto.FLOAT, None))
    node = next(node for node in made.graph.node if node.name == layer.node)
    made.graph.output[-1].name = node.output[0]
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    session = session_of(made, tokens.folder, 1)
    got = session.run([node.output[0]], {"x": x, "rows": np.arange(2)})[0]
    weight = load_weight(tokens.model, tokens.folder, layer.weight)
    scale = np.abs(weight).max(axis=0) / 127
    rounded = np.rint(weight / scale) * scale
    assert np.allclose(got, np.where(x > 0, 1.0, -1.0) @ rounded, atol=1e-5)


def test_a_calibrated_bundle_is_used_like_another(calibrated: Get) -> None:
    with Pipeline.open(calibrated("int8").bundle.folder, threads=1) as pipeline:
        (image,) = pipeline.generate(Request(classes=[3], seed=1, steps=4))
        assert image.pixels is not None and image.pixels.std() > 10
        tokens = pipeline.tokenize(image.pixels[None])
    assert np.isin(tokens, (-1, 1)).all()
    for name, stage in calibrated("int8").bundle.stages.items():
        assert stage.graph.path == f"onnx/{'fp32' if name in ('prompt', *WINDOW_STAGES) else 'int8'}/{name}.onnx"
