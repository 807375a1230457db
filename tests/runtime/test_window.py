"""Sampling in windows gives what one evaluation after the other gives, whatever is asked for."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import FIXTURES
from rounding import assert_same_bits, predictions_of

from bitdance_edge.model import load_generator
from bitdance_edge.model.backbone import GrowingCache
from bitdance_edge.model.window import logit_slopes, sample_in_windows
from bitdance_edge.runtime import (
    Bundle,
    Pipeline,
    Request,
    RequestError,
    read_settings,
    request_from_settings,
    window_choice,
)
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.specs import MeasuredWindow, WindowSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, WINDOW_STAGES
from bitdance_edge.runtime.loop import BoundLoop, LoopShape
from bitdance_edge.runtime.noise import ImageNoise
from bitdance_edge.runtime.sampler import Schedule
from bitdance_edge.runtime.streaming import token_request
from bitdance_edge.runtime.window import WindowRun
from bitdance_edge.runtime.window_measure import measured_window

STEPS = 6
TEXT = "t2i_16x_swiglu"
HALF = np.zeros((8, 8), bool)
HALF[1:4, 2:7] = True  # whole patches and parts of some


EXACT = WindowSpec(tolerance=1e-6, runs=())  # random heads multiply what is left of a state's move


def exact(bundle: Bundle, folder: Path, window: WindowSpec = EXACT) -> Bundle:
    """A copy of a bundle with another window."""
    shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
    replace(bundle, folder=folder, window=window).write()
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with Pipeline.open(exact(bundle, tmp_path_factory.mktemp("window")).folder) as opened:
        yield opened


def assert_same(pipeline: Pipeline, request: Request, window: int) -> None:
    """Compare a window's tokens with the sequential ones, wherever these are farther from zero than rounding."""
    want = np.stack([image.tokens for image in pipeline.generate(replace(request, window=1))])
    got = np.stack([image.tokens for image in pipeline.generate(replace(request, window=window))])
    assert_same_bits(got, want, predictions_of(pipeline.bundle, replace(request, window=1)))


@pytest.mark.parametrize(
    ("sampler", "guidance", "schedule", "window"),
    [
        ("sde", 1.0, "constant", 2),
        ("sde", 3.0, "constant", 64),
        ("sde", 3.0, "linear", 3),
        ("ode", 1.0, "constant", 5),
        ("ode", 3.0, "linear", 2),
    ],
)
def test_images_are_those_of_one_evaluation_after_the_other(
    pipeline: Pipeline, sampler: str, guidance: float, schedule: str, window: int
) -> None:
    request = Request(
        classes=[3, 7, 1], seed=5, steps=STEPS, sampler=sampler, guidance=guidance, guidance_schedule=schedule
    )
    assert_same(pipeline, request, window)


@pytest.mark.parametrize(("fixture", "opset"), [("cc_1x", 24), (TEXT, 24), ("cc_4x_patch", 20)])
def test_other_models(exported: Callable[..., Bundle], fixture: str, opset: int, tmp_path: Path) -> None:
    bundle = exact(exported(fixture, opset), tmp_path)
    with Pipeline.open(bundle.folder) as pipeline:
        assert_same(pipeline, replace(Request.example(bundle), count=2, seed=5, steps=STEPS), 4)


EDITS = {
    "mask": {"mask": HALF},
    "mask and strength": {"mask": HALF, "strength": 0.6},
    "strengths": {"strength": np.linspace(0, 1, 16)},
    "candidates": {"mask": HALF, "candidates": 3},
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize(("sampler", "schedule"), [("sde", "linear"), ("ode", "constant")])
def test_edits(pipeline: Pipeline, name: str, sampler: str, schedule: str) -> None:
    tokens = np.where(np.random.default_rng(1).random((64, pipeline.bundle.model.bits)) < 0.5, -1, 1)
    request = Request(classes=[3, 7], seed=5, steps=STEPS, sampler=sampler, guidance_schedule=schedule, guidance=2.0)
    changed = replace(request, init=tokens, output="tokens", **EDITS[name])
    want = pipeline.generate(replace(changed, window=1))
    for one, other in zip(pipeline.generate(replace(changed, window=4)), want, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.seed == other.seed


def test_prefixes(pipeline: Pipeline) -> None:
    prefix = pipeline.generate(Request(classes=[3], seed=1, steps=2))[0].tokens[:20]
    assert_same(pipeline, Request(classes=[3, 4], seed=5, steps=STEPS, prefix=prefix), 4)


@pytest.mark.parametrize("sampler", ["sde", "ode"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("window", [2, 6])
def test_sweeps_and_states_are_those_of_the_plain_path(
    pipeline: Pipeline, sampler: str, guidance: float, window: int
) -> None:
    bundle = pipeline.bundle
    patch, noise = (bundle.model.tokens_per_step, bundle.model.bits), ImageNoise([5], STEPS, (4, 16))(0, False)
    want, sweeps = _plain(bundle, sampler, guidance, window, torch.from_numpy(noise[:, 0].copy()))
    backend = OnnxRuntimeBackend(bundle)
    loop = BoundLoop(
        backend,
        bundle,
        {name: backend.load(name) for name in (*LOOP_STAGES, *WINDOW_STAGES)},
        LoopShape(1, guidance > 1, STEPS, sampler, window=window),
    )
    request = Request(classes=[3], steps=STEPS, sampler=sampler, guidance=guidance).resolve(bundle)
    loop.start(token_request(replace(request, window=window)))
    run = loop.move_to(0, False)
    assert isinstance(run, WindowRun)
    run.sample(noise, guidance)
    assert run.sweeps == sweeps
    assert run.sampler.x.shape == (1, *patch)
    np.testing.assert_allclose(run.sampler.x.read()[0], want.numpy(), atol=1e-4)


def _plain(bundle: Bundle, sampler: str, guidance: float, window: int, noise: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The first patch of class 3 by the model's own windowed sampler: its state and its sweeps."""
    model = load_generator(FIXTURES / "cc_4x_patch" / "state.safetensors")
    config, head = model.config, model.head
    classes = torch.tensor([3, config.num_classes][: 2 if guidance > 1 else 1])
    hidden = GrowingCache(config.tokens_per_step).step(model.backbone, model.embed_prompt(classes))
    condition = head.cond_embed(hidden + model.position_term(torch.tensor([0])))
    schedule = Schedule.of(sampler, STEPS, config.time_shift)
    times, steps = torch.from_numpy(schedule.times), torch.from_numpy(schedule.coefficients)
    np.testing.assert_allclose(logit_slopes(times).numpy(), schedule.logit_slopes, rtol=1e-6)

    def evaluate(at: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        embedding = head.time_embed(times[at])[:, None, None] + condition
        rows = x[:, None].expand(-1, len(classes), -1, -1)
        return head.denoise(rows.flatten(0, 1), head.modulate(embedding.flatten(0, 1))).view(rows.shape)

    def advance(k: int, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        return steps[k, 0] * x + steps[k, 1] * clean + steps[k, 2] * noise[min(k + 1, STEPS)]

    assert bundle.window is not None
    tolerance = bundle.window.tolerance
    return sample_in_windows(evaluate, advance, noise[0], times, window=window, tolerance=tolerance, guidance=guidance)


def test_a_window_is_kept_in_the_image_and_reproduced(pipeline: Pipeline, tmp_path: Path) -> None:
    request = Request(classes=[3], seed=5, steps=STEPS)
    (plain,) = pipeline.generate(replace(request, window=1))
    assert "window" not in plain.settings
    (image,) = pipeline.generate(replace(request, window=4))
    image.save(tmp_path / "image.png")
    again = request_from_settings(read_settings(tmp_path / "image.png"))
    assert again.window == 4
    assert pipeline.generate(again)[0].to_pil() == image.to_pil()


@pytest.mark.parametrize("window", [0, 65, -1, 2.0, True, None, "2", "fast"])
def test_a_window_that_there_is_not(bundle: Bundle, window: object) -> None:
    with pytest.raises(RequestError, match="window is"):
        Request(classes=[3], window=window).resolve(bundle)  # type: ignore[arg-type]


def test_a_bundle_of_the_format_before_has_no_windows(bundle: Bundle, tmp_path: Path) -> None:
    older = exact(bundle, tmp_path).folder
    manifest = json.loads((older / "bundle.json").read_text(encoding="utf-8"))
    manifest["format"] = 4
    del manifest["window"]
    for stage in WINDOW_STAGES:
        del manifest["stages"][stage]
    (older / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with Pipeline.open(older) as pipeline:
        (image,) = pipeline.generate(Request(classes=[3], seed=5, steps=2))
        assert "window" not in image.settings
        with pytest.raises(RequestError, match=r"no windowed sampler.*bitdance-edge export"):
            pipeline.generate(Request(classes=[3], window=2))


def measured(window: int, sweeps: float, *, sampler: str = "sde", steps: int = 2, flipped: int = 0) -> MeasuredWindow:
    return MeasuredWindow(
        window=window, sampler=sampler, steps=steps, sweeps=sweeps, most_sweeps=3, bits=64, flipped=flipped
    )


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[int, float]:
    """Seconds of one evaluation (1) and of sweeps by window, in place of timed launches; what was timed is removed."""
    seconds: dict[int, float] = {}
    monkeypatch.setenv("BITDANCE_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(window_choice, "WORTH_TIMING", 0)
    monkeypatch.setattr(window_choice, "seconds_of_evaluation", lambda loop: seconds.pop(1))
    monkeypatch.setattr(window_choice, "seconds_of_sweep", lambda loop: seconds.pop(loop.shape.window))
    return seconds


def chosen(folder: Path, **asked: Any) -> int:
    """The window that ``auto`` takes in a fresh pipeline."""
    with Pipeline.open(folder) as pipeline:
        (image,) = pipeline.generate(Request(classes=[3], seed=5, window="auto", **{"steps": 5, **asked}))
    return image.settings.get("window", 1)


def test_the_faster_window_is_taken_and_its_costs_are_kept(
    bundle: Bundle, tmp_path: Path, timings: dict[int, float]
) -> None:
    spec = replace(EXACT, runs=(measured(2, 1.5), measured(4, 1.0)))
    folder = exact(bundle, tmp_path / "bundle", spec).folder
    timings |= {1: 1.0, 2: 1.2, 4: 1.3}
    assert chosen(folder) == 4  # 2.5 sweeps of 1.3 s beside 6 evaluations of 1 s
    assert not timings
    assert chosen(folder) == 4  # nothing is timed again
    (kept,) = (tmp_path / "cache" / "windows").iterdir()
    kept.write_text("{", encoding="utf-8")
    timings |= {1: 1.0, 2: 1.2, 4: 9.0}
    assert chosen(folder) == 2
    assert not timings


@pytest.mark.parametrize(
    ("runs", "asked"),
    [
        ((), {}),
        ((measured(2, 3.0),), {}),  # as many sweeps as evaluations
        ((measured(2, 1.0, flipped=1),), {}),
        ((measured(2, 1.0, sampler="ode"),), {}),
        ((measured(2, 1.0, steps=20),), {}),  # with fewer steps than were measured
    ],
)
def test_without_a_measured_gain_there_is_no_window(
    bundle: Bundle, tmp_path: Path, timings: dict[int, float], runs: tuple[MeasuredWindow, ...], asked: dict
) -> None:
    folder = exact(bundle, tmp_path / "bundle", replace(EXACT, runs=runs)).folder
    timings |= {1: 1.0, 2: 1.1}
    assert chosen(folder, **asked) == 1


def test_an_export_measures_windows(bundle: Bundle) -> None:
    spec = measured_window(replace(bundle, sampling=replace(bundle.sampling, steps=4), published=None), patches=2)
    assert {(run.window, run.sampler, run.steps) for run in spec.runs} == {(4, "sde", 4), (4, "ode", 4)}
    for run in spec.runs:
        assert run.bits == 2 * bundle.model.tokens_per_step * bundle.model.bits
        assert 1 <= run.sweeps <= run.most_sweeps <= 5
