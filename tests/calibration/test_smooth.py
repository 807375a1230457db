"""SmoothQuant moves difficulty from activations to weights and computes the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitdance_edge.calibration.collect import Activations, collect
from bitdance_edge.calibration.graphs import read_skeleton
from bitdance_edge.calibration.layers import find_layers
from bitdance_edge.calibration.recording import DataSet, Draw, record
from bitdance_edge.calibration.sessions import session_of
from bitdance_edge.calibration.smooth import smoothed
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.runtime import Bundle

DRAW = Draw(images=1, seed=2, steps=3, patches=3)
FOLDED = {
    "backbone": ("attention.wqkv", "feed_forward.w1", "feed_forward.w2"),
    "head": ("attn.wqkv", "w1", "w2", "final_layer.linear"),
    "tokens": ("proj_in.w2",),
}


@pytest.fixture(scope="module")
def recorded(digits: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return record(digits("fp32"), DRAW, tmp_path_factory.mktemp("smooth"), 1)


@pytest.mark.parametrize("stage", list(FOLDED))
def test_the_same_is_computed_and_channels_are_evener(
    digits: Callable[[str], Bundle], recorded: DataSet, stage: str
) -> None:
    bundle = digits("fp32")
    path = bundle.folder / bundle.stages[stage].graph.path
    skeleton = read_skeleton(path)
    layers = find_layers(stage, skeleton.graph)

    def look(graph) -> dict[str, Activations]:
        return collect(bundle, {stage: graph}, {stage: layers}, recorded, np.ones(DRAW.steps + 1), 1)  # type: ignore[operator]

    before = look(skeleton)
    channels = {name: seen.channels for name, seen in before.items() if seen.channels is not None}
    changed, done = smoothed(skeleton, path.parent, layers, channels, 0.5)
    blocks = {"backbone": 4, "head": 3, "tokens": 1}[stage]
    assert len(done) == len(set(done)) == blocks * len(FOLDED[stage]) - (blocks - 1) * (stage == "head")
    assert all(name.endswith(FOLDED[stage]) for name in done)
    products = [node.name for node in changed.graph.node if node.name.endswith("/smoothed")]
    assert len(products) == (3 if stage == "head" else 0)  # one for each shift that the modulation gives
    trial = Trial(bundle, DRAW, 1)
    outcome = trial.forced({stage: session_of(changed, path.parent, 1)})
    assert outcome.flips(trial.reference) == 0
    assert outcome.error(trial.reference) < 1e-3

    def spread(seen: Activations) -> float:
        assert seen.channels is not None
        return float(seen.channels.max() / np.median(seen.channels))

    after = look(changed)
    assert np.mean([spread(after[name]) for name in done]) < np.mean([spread(before[name]) for name in done])


def test_convolutions_and_layers_behind_attention_are_left(
    digits: Callable[[str], Bundle], recorded: DataSet, tmp_path: Path
) -> None:
    bundle = digits("fp32")
    path = bundle.folder / bundle.stages["decoder"].graph.path
    skeleton = read_skeleton(path)
    layers = find_layers("decoder", skeleton.graph)
    channels = {layer.name: np.ones(layer.shape[-1], np.float32) for layer in layers}
    changed, done = smoothed(skeleton, path.parent, layers, channels, 0.5)
    assert done == [] and changed.graph == skeleton.graph
