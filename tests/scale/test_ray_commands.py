"""What ``serve --engine ray`` says where it cannot start; no cluster is needed."""

import sys
from pathlib import Path

import pytest
from commanding import status_of

pytest.importorskip("ray")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--port", 0), "port is 0; replicas need one that is known to all nodes"),
        (("--address", "127.0.0.9:1"), "no bundle at"),
    ],
)
def test_serve_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], says: str
) -> None:
    assert status_of("serve", tmp_path, "--engine", "ray", *options) == 1
    assert says in capsys.readouterr().err


def test_serve_without_ray_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "bitdance_edge.scale.serving", raising=False)
    assert status_of("serve", tmp_path, "--engine", "ray") == 1
    said = capsys.readouterr().err
    assert "--engine ray: ray is not installed: pip install" in said and "[cpu,serve,ray]" in said


def test_no_cluster_at_an_address_is_said_with_what_may_help(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitdance_edge.scale.cluster import connect
    from bitdance_edge.scale.errors import ScaleError

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ScaleError, match=r"no cluster at 127\.0\.0\.9:1: .*ray start --head.*set RAY_AUTH_MODE=token"):
        connect(None, "127.0.0.9:1")
