"""A cache in FP8: the bits that flip where keys and values are rounded to E4M3, and what TensorRT-RTX builds of it.

    python bench/studies/fp8_cache.py bundles/shapes-16x --prompts captions.txt
    python bench/studies/fp8_cache.py bundles/digits-4x

Rounded is what enters the cache; all else stays float32. 64 images under teacher forcing, as in a calibration report.
The two builds are of one attention with the widths of 14B-64x, for compute capability 8.9: the cache updated in place,
and concatenated with the new rows, as a graph has to do where it cannot.
"""

import argparse
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bitdance_edge.calibration.graphs import read_skeleton
from bitdance_edge.calibration.recipe import Draw, Part
from bitdance_edge.calibration.sessions import BundleSessions, session_of
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.engines.network import write_engine
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.tensorrt_library import load_library

IMAGES = 64
HEADS, KEY_HEADS, WIDTH, SLOTS, NEW = 40, 8, 128, 4608, 64
FP8 = TensorProto.FLOAT8E4M3FN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="in float32")
    parser.add_argument("--prompts", type=Path, help="of a text-to-image bundle, one a line")
    args = parser.parse_args()
    prompts = tuple(args.prompts.read_text(encoding="utf-8").splitlines()) if args.prompts else ()
    bundle = Bundle.open(args.bundle)
    draw = Draw(images=1, seed=0, prompts=prompts).held_out(IMAGES, Part.TEST)
    trial = Trial(BundleSessions(bundle, 1), draw)
    path = bundle.verified("backbone")
    session = session_of(rounded_cache(read_skeleton(path)), path.parent, 1)
    flips = 100 * trial.forced_flips({"backbone": session})
    print(f"{bundle.name}: {flips:.3f} % of {trial.bits} bits flip where the cache is FP8")
    for name, model in (("updated in place", updated()), ("concatenated", concatenated())):
        print(f"{name}: {built(model)}")


def rounded_cache(model: ModelProto) -> ModelProto:
    """The backbone with what enters its cache rounded to E4M3, whose exponents hold all of it without a scale."""
    model.graph.initializer.extend(unit_scale(TensorProto.FLOAT))
    nodes = []
    for node in model.graph.node:
        if node.op_type == "TensorScatter":
            codes, back = f"{node.name}.codes", f"{node.name}.rounded"
            nodes.append(helper.make_node("QuantizeLinear", [node.input[1], "one", "zero"], [codes]))
            nodes.append(helper.make_node("DequantizeLinear", [codes, "one", "zero"], [back]))
            node.input[1] = back
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def unit_scale(number: int) -> list[TensorProto]:
    one = np.ones((), helper.tensor_dtype_to_np_dtype(number))
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    return [numpy_helper.from_array(one, "one"), numpy_helper.from_array(zero, "zero")]


def updated() -> ModelProto:
    """TensorScatter of rounded rows into an FP8 cache, which attention then reads."""
    nodes, outputs = [], []
    for name in ("keys", "values"):
        nodes += [
            helper.make_node("QuantizeLinear", [f"new_{name}", "one", "zero"], [f"{name}_codes"]),
            helper.make_node("TensorScatter", [f"past_{name}", f"{name}_codes", "slot"], [f"{name}_out"], axis=2),
            helper.make_node("DequantizeLinear", [f"{name}_out", "one", "zero"], [name]),
        ]
        outputs.append(helper.make_tensor_value_info(f"{name}_out", FP8, [2, KEY_HEADS, SLOTS, WIDTH]))
    return _attention(nodes, outputs, SLOTS)


def concatenated() -> ModelProto:
    """An FP8 cache that is only read, and the rounded new rows as outputs, for the host to write into it."""
    nodes, outputs = [], []
    for name in ("keys", "values"):
        nodes += [
            helper.make_node("QuantizeLinear", [f"new_{name}", "one", "zero"], [f"{name}_out"]),
            helper.make_node("Concat", [f"past_{name}", f"{name}_out"], [f"{name}_codes"], axis=2),
            helper.make_node("DequantizeLinear", [f"{name}_codes", "one", "zero"], [name]),
        ]
        outputs.append(helper.make_tensor_value_info(f"{name}_out", FP8, [2, KEY_HEADS, NEW, WIDTH]))
    return _attention(nodes, outputs, SLOTS + NEW)


def _attention(nodes: list, outputs: list, slots: int) -> ModelProto:
    half, cache = TensorProto.BFLOAT16, [2, KEY_HEADS, SLOTS, WIDTH]
    inputs = [
        helper.make_tensor_value_info("queries", half, [2, HEADS, NEW, WIDTH]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, [2, 1, NEW, slots]),
        helper.make_tensor_value_info("slot", TensorProto.INT64, [2]),
    ]
    for name in ("keys", "values"):
        inputs.append(helper.make_tensor_value_info(f"new_{name}", half, [2, KEY_HEADS, NEW, WIDTH]))
        inputs.append(helper.make_tensor_value_info(f"past_{name}", FP8, cache))
    nodes = [*nodes, helper.make_node("Attention", ["queries", "keys", "values", "mask"], ["y"])]
    made = [helper.make_tensor_value_info("y", half, [2, HEADS, NEW, WIDTH]), *outputs]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "attention", [value for value in inputs if value.name in read], made, unit_scale(half)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def built(model: ModelProto) -> str:
    """What TensorRT-RTX says of a graph."""
    library = load_library("tensorrt_rtx")
    trt = library.trt
    with tempfile.TemporaryDirectory() as folder, library.recording() as said:
        path = Path(folder) / "attention.onnx"
        onnx.save(model, path)
        builder = trt.Builder(library.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, library.logger)
        if not parser.parse_from_file(str(path)):
            return f"not parsed: {parser.get_error(0).desc()}"
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        if write_engine(library, builder, network, config, path.with_suffix(".engine")):
            return "builds"
        return next((line for line in said if "ERROR" in line), "the builder gave no reason")


if __name__ == "__main__":
    main()
