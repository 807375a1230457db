"""A small network that reads images: means of colours in four corners as features, and one score a class."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4


def write_network(path: Path, size: int | str = "S", outputs: tuple[str, ...] = ("features", "scores")) -> Path:
    """Write the network; ``size`` is the side of the square images that it takes, or a name for any."""
    weights = np.random.default_rng(3).normal(size=(12, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["planes", "", "", "sizes"], ["small"], mode="linear", antialias=1, axes=[2, 3]),
        helper.make_node("Flatten", ["small"], ["features"]),
        helper.make_node("MatMul", ["features", "weights"], ["scores"]),
    ]
    shapes = {"features": 12, "scores": CLASSES}
    graph = helper.make_graph(
        nodes,
        "reader",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", shapes[name]]) for name in outputs],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([2, 2]), "sizes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
