"""Other runtimes on the same graphs, and several batches: they make the same image, and each batch has its report."""

import json
from pathlib import Path

import pytest
from benching import CHECKPOINT, SHORT, bench

from bitdance_edge.bench.peers import PEERS, backend_of, products
from bitdance_edge.runtime import BackendError, Bundle
from bitdance_edge.runtime.backends.processor import float32_path, int8_path

pytestmark = pytest.mark.serial


def test_plain_graphs_take_part_in_every_batch(bundle: Bundle, tmp_path: Path) -> None:
    asked = ("--checkpoint", CHECKPOINT, "--against", "torch,onnxruntime", "--batch", "1,2", *SHORT, "--rounds", "1")
    report = bench(bundle.folder, *asked, "-o", tmp_path / "runs").report
    name = PEERS["onnxruntime"]
    assert list(report["batches"]) == ["1", "2"]
    for images, found in report["batches"].items():
        assert found["work"]["images"] == int(images)
        contenders = {each["name"]: each for each in found["threads"][0]["contenders"]}
        peer = contenders[name]
        assert peer["agreement"]["forced"]["wrong_share"] == peer["agreement"]["free"]["wrong_share"] == 0
        assert peer["agreement"]["forced"]["compared"] == int(images) * 2 * bundle.model.tokens_per_step * (
            bundle.model.bits
        )
        assert peer["stages"]["head"]["launches"] == contenders[bundle.name]["stages"]["head"]["launches"]
        assert peer["stages"]["head"]["floor"] > 0
        assert float32_path() in peer["products"]["head"]
        folder = tmp_path / "runs" / f"batch-{images}"
        assert json.loads((folder / "report.json").read_text()) == found
        page = (folder / "report.md").read_text()
        assert name in page and "neither VNNI nor AMX" in page
        assert found["machine"]["flags"] == sorted(found["machine"]["flags"])
    table = (tmp_path / "runs" / "batches.md").read_text()
    assert "| | 1 | 2 |" in table
    assert all(f"| {each} |" in table for each in (bundle.name, name, "PyTorch eager"))


def test_int8_stages_say_which_instructions_multiply(bundle: Bundle) -> None:
    spec = bundle.stage("head")
    assert int8_path().why not in products(spec)
    assert products(type(spec)(**{**spec.__dict__, "precision": "int8"})) == int8_path().why


@pytest.mark.parametrize("kind", ["openvino", "openvino-bf16"])
def test_openvino_reads_and_writes_the_memory_of_the_loop(bundle: Bundle, kind: str) -> None:
    pytest.importorskip("openvino")
    try:
        backend = backend_of(kind, bundle, 1)
    except BackendError as error:
        pytest.skip(str(error))
    stage, spec = backend.load("tokens"), bundle.stage("tokens")
    buffers = {t.name: backend.empty(t.sized({"B": 1, "R": 1}), t.dtype) for t in (*spec.inputs, *spec.outputs)}
    x = next(t for t in spec.inputs if t.name == "x")
    given = buffers["x"].array  # type: ignore[attr-defined]
    given[...] = -0.5
    given.flat[0] = 0.5
    stage.bind(buffers)()
    tokens = buffers["tokens"].read()
    assert tokens.flat[0] == 1
    assert (tokens.flat[1:] == -1).all()
    assert x.dtype == "float32"
