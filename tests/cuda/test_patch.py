"""A patch is one CUDA graph, on one stream, with nothing in it that a graph must not hold; nothing is left behind."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cuda_trace import Trace

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.backends.cuda_driver import DriverDevice
from bitdance_edge.runtime.backends.cuda_graph import A_GRAPH, PATCH, CaptureError
from bitdance_edge.runtime.backends.cuda_memory import CudaBuffer, Lane
from bitdance_edge.runtime.backends.onnxruntime_cuda import PROVIDER, BoundCudaSession, OnnxRuntimeCudaBackend

STEPS = 3
REQUEST = Request(classes=[1, 2], steps=STEPS, seed=1, output="tokens")
WORK = ("launch", "call", "graph")


@pytest.fixture(params=["fp32", "fp16", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def opened(bundle: Bundle) -> Pipeline:
    return Pipeline.open(bundle.folder, backend="onnxruntime-cuda", max_batch=2)


def backend_of(pipeline: Pipeline) -> OnnxRuntimeCudaBackend:
    assert isinstance(pipeline.backend, OnnxRuntimeCudaBackend)
    return pipeline.backend


def streams(lines: list[str]) -> set[str]:
    return {found[1] for line in lines if (found := re.search(r"stream=(\S+)", line))}


def test_a_patch_is_one_launch_after_the_first(on_cuda: Callable[..., Bundle], precision: str, trace: Trace) -> None:
    with opened(on_cuda("cc_4x_patch", precision)) as pipeline:
        pipeline.generate(REQUEST)
        pipeline.generate(REQUEST)  # with the graph of what follows a prompt
        patches = REQUEST.resolve(pipeline.bundle).size.patches
        assert pipeline.choice.graphs[PATCH] == A_GRAPH
        captured = trace.captured()
        calls = backend_of(pipeline).calls
        trace.start()
        pipeline.generate(REQUEST)
        replayed = trace.lines()
        # The prompt and its pass are launched stage by stage: prompts differ in length.
        assert backend_of(pipeline).calls - calls == 2 + patches
    launched = [line for line in replayed if line.startswith("graph launched")]
    assert len(launched) == patches
    assert not [line for line in replayed if line.startswith(("malloc", "free", "synchronize stream", "capture"))]
    assert not [line for line in captured if "ILLEGAL" in line]
    assert not [line for line in captured if "host" in line]
    assert len(streams([line for line in captured + replayed if line.startswith(WORK)])) == 1


def test_onnxruntime_says_nothing_where_nothing_is_wrong(
    on_cuda: Callable[..., Bundle], capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(on_cuda("cc_4x_patch", "fp16")) as pipeline:
        pipeline.generate(REQUEST)
    assert "onnxruntime" not in capfd.readouterr().err


def test_sixteen_bits_may_use_tensor_cores_for_convolutions(on_cuda: Callable[..., Bundle]) -> None:
    with opened(on_cuda("cc_4x_patch", "fp16")) as pipeline:
        pipeline.generate(REQUEST)
        pipeline.decode(np.ones((1, pipeline.bundle.model.default_size.tokens, pipeline.bundle.model.bits), np.float32))
        backend = backend_of(pipeline)
        stages = [stage for lane in (backend, *backend.siblings) for stage in lane.stages]
        allowed = {stage.name for stage in stages if stage.session.get_provider_options()[PROVIDER]["use_tf32"] == "1"}
    assert allowed == {"decoder"}


def test_every_session_keeps_the_bits_of_float32_and_the_stream_of_its_lane(on_cuda: Callable[..., Bundle]) -> None:
    with opened(on_cuda("cc_4x_patch", "fp32")) as pipeline:
        pipeline.generate(REQUEST)
        backend = backend_of(pipeline)
        assert not any(stage.session.get_session_options().enable_mem_reuse for stage in backend.stages)
        options = [stage.session.get_provider_options()[PROVIDER] for stage in backend.stages]
        assert len(options) >= 6
        assert {each["use_tf32"] for each in options} == {"0"}
        assert {each["arena_extend_strategy"] for each in options} == {"kSameAsRequested"}
        assert {int(each["user_compute_stream"]) for each in options} == {backend.lane.stream.handle}


def test_nothing_is_left_behind(on_cuda: Callable[..., Bundle], precision: str, trace: Trace) -> None:
    with opened(on_cuda("cc_4x_patch", precision)) as pipeline:
        pipeline.generate(REQUEST)
        pipeline.generate(Request(classes=[1], steps=2, seed=1))
        assert trace.alive()["memory"] > 0
    assert not trace.alive()
    assert not [line for line in trace.lines() if "ILLEGAL" in line]


def test_where_a_patch_cannot_be_captured_its_stages_are(
    on_cuda: Callable[..., Bundle], trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: BoundCudaSession) -> None:
        raise CaptureError(f"{self.stage.name} waits for the host")

    monkeypatch.setattr(BoundCudaSession, "record", refuse)
    with opened(on_cuda("cc_4x_patch", "fp16")) as pipeline:
        pipeline.generate(REQUEST)
        assert pipeline.choice.graphs[PATCH] == "not a CUDA graph: backbone waits for the host"
        pipeline.generate(REQUEST)
        trace.start()
        pipeline.generate(REQUEST)
        patches, launches = REQUEST.resolve(pipeline.bundle).size.patches, 3 + STEPS + 1
    replayed = trace.lines()
    assert sum(line.startswith("graph launched") for line in replayed) >= (patches - 1) * launches
    # ONNX Runtime waits for the stream behind each graph of its own, which is why the patch is captured from outside.
    assert not [line for line in replayed if line.startswith(("malloc", "capture begins"))]


def test_the_next_patch_is_queued_before_the_last_is_waited_for(on_cuda: Callable[..., Bundle], trace: Trace) -> None:
    with opened(on_cuda("cc_4x_patch", "fp16")) as pipeline:
        pipeline.generate(REQUEST)
        trace.start()
        pipeline.generate(REQUEST)
    queue = [line for line in trace.lines("graph", "copy") if "launched" in line or "device-to-host" in line]
    launches = [i for i, line in enumerate(queue) if "launched" in line]
    assert len(launches) > 2
    assert backend_of(pipeline).run_ahead == 1


def test_parts_of_a_buffer_are_at_their_offsets() -> None:
    device = DriverDevice(0)
    with device.current():
        buffer = CudaBuffer(Lane(device), (3, 2, 4), "float32", ahead=True)
        values = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
        buffer.write(values)
        np.testing.assert_array_equal(buffer.read(), values)
        assert buffer[2][1].address - buffer.address == 5 * 16
        buffer.write(values + 1)
        np.testing.assert_array_equal(buffer.fetch().wait(), values + 1)
    device.close()


def test_a_window_is_a_graph_to_begin_with_and_one_a_sweep(on_cuda: Callable[..., Bundle], trace: Trace) -> None:
    request = replace(REQUEST, window=2)
    with opened(on_cuda("cc_4x_patch", "fp16")) as pipeline:
        pipeline.generate(request)
        captured, calls = trace.captured(), backend_of(pipeline).calls
        assert pipeline.choice.graphs[PATCH] == A_GRAPH
        trace.start()
        pipeline.generate(request)
        replayed, patches = trace.lines(), request.resolve(pipeline.bundle).size.patches
        # Nothing is computed here, so that no state ever settles, and a patch takes as many sweeps as evaluations.
        embedded, begun, sweeps = patches, patches - 1, patches * (STEPS + 1)
        first = 1 + 1 + 1 + 1 + 3 + 1  # prompt, its pass, modulations, the guess: extrapolate, three steps, settle
        assert backend_of(pipeline).calls - calls == first + embedded + begun + sweeps
    assert not [line for line in replayed if line.startswith(("malloc", "free", "capture"))]
    assert not [line for line in captured if "ILLEGAL" in line or "host" in line]
    assert len(streams([line for line in captured + replayed if line.startswith(WORK)])) == 1
