"""What a loaded stage takes of this machine's memory, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH = 16, 1024
WEIGHTS = LAYERS * WIDTH * WIDTH * 4
LOAD = """
import resource, sys
from pathlib import Path
import numpy as np
from bitdance_edge.runtime.bundle.specs import FileSpec, StageSpec, TensorSpec
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, OnnxRuntimeStage

path, weights = Path(sys.argv[1]), int(sys.argv[2])
x, y = (TensorSpec(name=name, dtype="float32", shape=("B", 8, {width})) for name in "xy")
file = FileSpec(path=path.name, sha256="", bytes=path.stat().st_size)
spec = StageSpec(graph=file, weights=(), precision="fp32", inputs=(x,), outputs=(y,), max_error=None, tolerance=0.0,
                 weight_bytes=weights, activation_bytes=0)

def taken():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmRSS:"))

def load(stage):
    return OnnxRuntimeStage(path, spec, 1, None)

import onnxruntime
before = taken()
stage = load(path)
print(taken() - before)
launch = stage.bind({{name: HostBuffer(np.zeros((1, 8, {width}), np.float32)) for name in "xy"}})
for _ in range(3):
    launch()
print(taken() - before)
"""


def test_a_stage_takes_little_more_than_its_weights_once_it_is_loaded(tmp_path: Path) -> None:
    """Measured on 1x1 convolutions, whose weights the library reorders while it loads them."""
    script, path = tmp_path / "load.py", tmp_path / "head.onnx"
    script.write_text(LOAD.format(width=WIDTH))
    write_convolutions(path)
    run = subprocess.run([sys.executable, script, path, str(WEIGHTS)], check=True, capture_output=True, text=True)
    for taken in map(int, run.stdout.split()):
        assert 0.9 * WEIGHTS < taken < 1.3 * WEIGHTS + 16e6  # and the code of the library


def write_convolutions(path: Path) -> None:
    nodes, weights = [helper.make_node("Transpose", ["x3"], ["c0"], perm=[0, 3, 1, 2])], []
    axes = numpy_helper.from_array(np.array([0]), "axes")
    nodes.insert(0, helper.make_node("Unsqueeze", ["x", "axes"], ["x3"]))
    for layer in range(LAYERS):
        values = np.random.default_rng(layer).standard_normal((WIDTH, WIDTH, 1, 1), np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [f"c{layer}", f"w{layer}"], [f"c{layer + 1}"]))
    nodes.append(helper.make_node("Transpose", [f"c{LAYERS}"], ["y3"], perm=[0, 2, 3, 1]))
    nodes.append(helper.make_node("Squeeze", ["y3", "axes"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 8, WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], [axes, *weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="head.onnx.data")
