"""SmoothQuant moves difficulty from activations to weights and computes the same."""

from collections.abc import Callable

import numpy as np
import pytest
from calibrating import options

from bitdance_edge.calibration.activations import Activations, collect
from bitdance_edge.calibration.graphs import StageGraph
from bitdance_edge.calibration.recipe import Draw
from bitdance_edge.calibration.record import DataSet, record
from bitdance_edge.calibration.sessions import BundleSessions, session_of
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
def sessions(digits: Callable[[str], Bundle]) -> BundleSessions:
    return BundleSessions(digits("fp32"), 1)


@pytest.fixture(scope="module")
def recorded(sessions: BundleSessions, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return record(sessions, DRAW, tmp_path_factory.mktemp("smooth"))


@pytest.fixture(scope="module")
def trial(sessions: BundleSessions) -> Trial:
    return Trial(sessions, DRAW)


@pytest.mark.parametrize("stage", list(FOLDED))
def test_the_same_is_computed_and_channels_are_evener(
    sessions: BundleSessions, recorded: DataSet, trial: Trial, stage: str
) -> None:
    graph = StageGraph.read(sessions.bundle, stage)

    def look(graph: StageGraph) -> dict[str, Activations]:
        asked = options("int8", [stage]).recipe
        return collect({stage: graph}, asked, recorded, np.ones(recorded.steps + 1), 1)

    before = look(graph)
    channels = {name: seen.channels for name, seen in before.items() if seen.channels is not None}
    changed, done = smoothed(graph, channels, 0.5)
    blocks = {"backbone": 4, "head": 3, "tokens": 1}[stage]
    assert len(done) == len(set(done)) == blocks * len(FOLDED[stage]) - (blocks - 1) * (stage == "head")
    assert all(name.endswith(FOLDED[stage]) for name in done)
    products = [node.name for node in changed.model.graph.node if node.name.endswith("/smoothed")]
    assert len(products) == (3 if stage == "head" else 0)  # one for each shift that the modulation gives
    outcome = trial.forced({stage: session_of(changed.model, changed.folder, 1)})
    assert outcome.flips(trial.reference) == 0
    assert outcome.error(trial.reference) < 1e-3

    def spread(seen: Activations) -> float:
        assert seen.channels is not None
        return float(seen.channels.max() / np.median(seen.channels))

    after = look(changed)
    assert np.mean([spread(after[name]) for name in done]) < np.mean([spread(before[name]) for name in done])


def test_convolutions_are_left_unchanged(sessions: BundleSessions) -> None:
    graph = StageGraph.read(sessions.bundle, "decoder")
    channels = {layer.name: np.ones(layer.shape[-1], np.float32) for layer in graph.layers}
    changed, done = smoothed(graph, channels, 0.5)
    assert done == [] and changed.model.graph == graph.model.graph
