"""Where ONNX Runtime runs out of memory, that is what the error says; its other errors keep their kind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from bitdance_edge.runtime import Bundle, BundleError
from bitdance_edge.runtime.backends.interface import StageTime
from bitdance_edge.runtime.backends.onnxruntime import BoundSession, OnnxRuntimeStage, memory_errors
from bitdance_edge.runtime.errors import OutOfMemoryError

ARENA = "[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9"
LOADING = "[ONNXRuntimeError] : 1 : FAIL : Load model from head.onnx failed:std::bad_alloc"


@pytest.mark.parametrize("arena", [True, False])
def test_more_than_any_machine_has(arena: bool) -> None:
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["n"], ["y"])],
        "large",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises(OutOfMemoryError, match="ran out of memory: generate fewer images at once"), memory_errors():
        session.run(None, {"n": np.array([2**45])})


def fails(message: str) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    return fail


def test_a_launch() -> None:
    def launch(message: str) -> None:
        session = SimpleNamespace(run_with_iobinding=fails(message))
        BoundSession(session, None, [], StageTime(), Path("head.onnx"))()

    with pytest.raises(OutOfMemoryError):
        launch(ARENA)
    with pytest.raises(BundleError, match=r"cannot run head\.onnx: another reason"):
        launch("another reason")


def test_loading_a_stage(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> OnnxRuntimeStage:
        return OnnxRuntimeStage(Path("head.onnx"), bundle.stage("head"), 1, None)

    monkeypatch.setattr(ort, "InferenceSession", fails(LOADING))
    with pytest.raises(OutOfMemoryError, match="bad_alloc"):
        load()
    monkeypatch.setattr(ort, "InferenceSession", fails("another reason"))
    with pytest.raises(BundleError, match=r"cannot load head\.onnx: another reason"):
        load()
