"""Edits on ONNX Runtime's CUDA: what is known is kept on the device, and sampled patches are still one launch."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cuda_trace import Trace

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from bitdance_edge.runtime.patch_run import PatchRun
from bitdance_edge.runtime.sampler import Schedule
from bitdance_edge.runtime.window import WindowRun

STEPS = 4
WHOLE = np.zeros((8, 8), bool)
WHOLE[2:6, 2:6] = True  # 4 of the 16 patches
CUT = np.zeros((8, 8), bool)
CUT[1:4, 2:7] = True  # whole patches and parts of some


@pytest.fixture(scope="module")
def built_bundle(on_cuda: Callable[..., Bundle]) -> Bundle:
    return on_cuda("cc_4x_patch", "fp16")


def edit(bundle: Bundle, **fields: object) -> Request:
    model = bundle.model
    shape = (model.default_size.tokens, model.bits)
    tokens = np.where(np.random.default_rng(1).random(shape) < 0.5, -1, 1)
    asked = {"init": tokens, "seed": 5, "steps": STEPS, "output": "tokens", **fields}
    return replace(Request.example(bundle), **asked)  # type: ignore[arg-type]


def opened(bundle: Bundle) -> Pipeline:
    return Pipeline.open(bundle.folder, backend="onnxruntime-cuda", max_batch=2)


def calls_of(pipeline: Pipeline, request: Request) -> int:
    assert isinstance(pipeline.backend, OnnxRuntimeCudaBackend)
    before = pipeline.backend.calls
    pipeline.generate(request)
    return pipeline.backend.calls - before


def test_only_the_patches_that_are_redrawn_are_launched_as_graphs(built_bundle: Bundle, trace: Trace) -> None:
    asked = edit(built_bundle, mask=WHOLE)
    with opened(built_bundle) as pipeline:
        pipeline.generate(asked)
        trace.start()
        calls = calls_of(pipeline, asked)
    lines = trace.lines()
    assert calls == 1 + 12 * 2 + 4  # the prompt; kept patches: backbone and embedding; redrawn ones: one each
    assert sum(line.startswith("graph launched") for line in lines) >= 4
    assert not [line for line in lines if line.startswith(("malloc", "capture")) or "ILLEGAL" in line]


def test_a_strength_leaves_out_the_evaluations_before_its_start(built_bundle: Bundle, trace: Trace) -> None:
    asked = edit(built_bundle, strength=0.5)
    assert Schedule.of("sde", STEPS, built_bundle.sampling.time_shift, 0.5).evaluations < STEPS + 1
    with opened(built_bundle) as pipeline:
        pipeline.generate(asked)
        pipeline.generate(asked)  # with the graph of what follows a prompt
        trace.start()
        patches = asked.resolve(built_bundle).size.patches
        assert calls_of(pipeline, asked) == 2 + patches  # the prompt and its pass are launched stage by stage
    assert not [line for line in trace.lines() if "ILLEGAL" in line]


FIELDS = {
    "mask": {"mask": CUT},
    "mask and strength": {"mask": CUT, "strength": 0.6},
    "candidates": {"mask": CUT, "candidates": 2},
    "ode": {"mask": CUT, "sampler": "ode"},
}


@pytest.mark.parametrize("name", FIELDS)
def test_held_tokens_are_on_the_device_after_their_patch(
    built_bundle: Bundle, trace: Trace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sample, checked = PatchRun.sample, 0

    def and_compare(
        run: PatchRun, noise: np.ndarray, guidance: float, tokens: np.ndarray | None, held: np.ndarray | None
    ) -> None:
        nonlocal checked
        sample(run, noise, guidance, tokens, held)
        on_device = isinstance(run.sampler.shared.backend, OnnxRuntimeCudaBackend)  # not where memory is planned
        if on_device and tokens is not None and held is not None and held.any():
            found = run.sampler.x.read()
            np.testing.assert_array_equal(found[:, held], np.tile(tokens, (len(found) // len(tokens), 1, 1))[:, held])
            checked += 1

    monkeypatch.setattr(PatchRun, "sample", and_compare)
    asked = edit(built_bundle, **FIELDS[name])
    held = asked.resolve(built_bundle).given.held.any(axis=1).sum()
    with opened(built_bundle) as pipeline:
        pipeline.generate(asked)
        assert checked == held > 0
        pipeline.generate(asked)
    lines = trace.lines()
    assert [line for line in lines if line.startswith("copy") and "device-to-device" in line]
    assert not [line for line in lines if "ILLEGAL" in line]
    assert not trace.alive()


@pytest.mark.parametrize("name", FIELDS)
def test_edits_in_windows_keep_held_tokens_and_are_graphs_even_so(
    built_bundle: Bundle, trace: Trace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sample, held_in = WindowRun.sample, []

    def and_keep(
        run: WindowRun, noise: np.ndarray, guidance: float, tokens: np.ndarray | None, held: np.ndarray | None
    ) -> None:
        sample(run, noise, guidance, tokens, held)
        on_device = isinstance(run.sampler.shared.backend, OnnxRuntimeCudaBackend)  # not where memory is planned
        if on_device and tokens is not None and held is not None and held.any():
            # The path of held tokens is written, and nothing that is computed reaches them.
            free, added = run.window.free.read(), run.window.added.read()
            assert not free[held].any() and free[~held].all()
            np.testing.assert_array_equal(
                added[-1][:, held], np.tile(tokens, (len(added[-1]) // len(tokens), 1, 1))[:, held]
            )
            held_in.append(held)

    monkeypatch.setattr(WindowRun, "sample", and_keep)
    asked = edit(built_bundle, **FIELDS[name], window=2)
    held = asked.resolve(built_bundle).given.held.any(axis=1).sum()
    with opened(built_bundle) as pipeline:
        pipeline.generate(asked)
        assert len(held_in) == held > 0
        begun = len(trace.lines())
        pipeline.generate(asked)
    lines = trace.lines()[begun:]
    assert sum(line.startswith("graph launched") for line in lines) >= held
    assert not [line for line in lines if line.startswith(("malloc", "capture")) or "ILLEGAL" in line]
    assert not trace.alive()
