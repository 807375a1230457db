"""Names on the Hub, against a Hub on loopback: what is downloaded, kept and pinned, and what is uploaded."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commanding import EXPORTED_ONLY
from hub_server import COMMIT, Hub, hub
from places import FIXTURES
from tracing import reuse_graphs

from bitdance_edge.cli import main
from bitdance_edge.commands.hub_checkpoint import find_checkpoint, needed_files
from bitdance_edge.runtime import Bundle, HubError, Pipeline

OWNER = "someone"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, a cache of its own, and a folder to work in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.chdir(tmp_path)
    with hub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def repository(server: Hub, name: str, *sources: Path, **texts: str) -> Path:
    """A repository of copies of files, and of files with these texts."""
    folder = server.root / OWNER / name
    folder.mkdir(parents=True)
    for source in sources:
        shutil.copy(source, folder)
    for stem, text in texts.items():
        (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    return folder


def test_a_checkpoint_by_name_is_exported_with_its_commit_and_licence(
    served: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse_graphs(monkeypatch, bundle)
    source = FIXTURES / "cc_4x_patch"
    folder = repository(
        served, "digits", source / "config.json", source / "state.safetensors", README="---\nlicense: mit\n---\n"
    )
    (folder / "samples.bin").write_bytes(b"not needed")
    assert main(["export", f"{OWNER}/digits", "-o", "exported", *EXPORTED_ONLY, "--quiet"]) == 0
    provenance = Bundle.open("exported").provenance
    assert (provenance["hub"], provenance["hub_revision"]) == (f"{OWNER}/digits", COMMIT)
    assert provenance["license"] == "mit"
    assert {name for name, _ in served.asked} == {"config.json", "state.safetensors", "README.md"}


def test_an_interrupted_download_goes_on(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)  # what is written at once
    folder = repository(served, "big", FIXTURES / "cc_4x_patch" / "config.json")
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    served.cut = "model.safetensors"
    found = find_checkpoint(f"{OWNER}/big", None, None, None)
    assert (found.path / "model.safetensors").stat().st_size == 3_000_000
    ranges = [given for name, given in served.asked if name == "model.safetensors"]
    assert ranges[0] == "" and ranges[-1].startswith("bytes=1")


def test_offline_the_cache_is_used_and_what_it_lacks_is_said(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(
        served, "kept", *(FIXTURES / "cc_4x_patch").glob("*.safetensors"), FIXTURES / "cc_4x_patch" / "config.json"
    )
    online = find_checkpoint(f"{OWNER}/kept", None, None, None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert find_checkpoint(f"{OWNER}/kept", None, None, None) == online
    with pytest.raises(HubError, match=f"fetch it where it can: hf download {OWNER}/other --local-dir models/other$"):
        find_checkpoint(f"{OWNER}/other", None, None, None)
    line = "hf download someone/several BitDance_B_4x.pt ae_d16c32.pt --revision v1 --local-dir models$"
    with pytest.raises(HubError, match=line):
        find_checkpoint(f"{OWNER}/several", "B-4x", None, "v1")


def test_without_the_extra_the_error_names_it_and_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        HubError, match=r"\[hub\]', or fetch it with any tool: hf download someone/x --local-dir models/x"
    ):
        find_checkpoint("someone/x", None, None, None)


def test_a_repository_that_is_not_there_is_one_line(served: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"{OWNER}/nothing", "-o", "out"]) == 1
    said = capsys.readouterr().err
    assert f"{OWNER}/nothing" in said and "hf download" in said and len(said.splitlines()) == 1


def test_paths_are_not_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert find_checkpoint("checkpoints/typo", None, None, None).path == Path("checkpoints/typo")
    with pytest.raises(HubError, match="--revision is of a repository"):
        find_checkpoint("checkpoints/typo", None, None, "main")


PUBLISHED = ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "ae.safetensors"]
PUBLISHED += ["ae_config.json", "vision_head.safetensors", "vision_head_config.json", "projector.safetensors"]
PUBLISHED += ["tokenizer.json"]
PORTED = ["model_index.json", "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"]


@pytest.mark.parametrize(
    ("files", "options", "needed"),
    [
        ([*PUBLISHED, "optimizer.pt", "assets/big.png"], {}, PUBLISHED),
        ([*PORTED, "text_encoder/old/model.safetensors", "scheduler/config.json"], {}, PORTED),
        (["config.json", "a.safetensors", "extra/b.safetensors"], {}, ["config.json", "a.safetensors"]),
        (["BitDance_B_4x.pt", "BitDance_L_1x.pt", "ae_1.pt"], {"variant": "B-4x"}, ["BitDance_B_4x.pt", "ae_1.pt"]),
    ],
)
def test_only_what_an_export_reads_is_needed(files: list[str], options: dict, needed: list[str]) -> None:
    assert set(needed_files(files, **{"variant": None, "tokenizer": None, **options})) == set(needed)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["BitDance_B_4x.pt", "BitDance_L_1x.pt"], {}, "choose one with --variant: B-4x, L-1x"),
        (["notes.txt"], {}, "it holds no checkpoint"),
        (["BitDance_B_4x.pt", "ae.pt"], {"variant": "H-1x"}, "it has no BitDance_H_1x.pt for --variant H-1x"),
        (
            ["BitDance_B_4x.pt", "ae_1.pt", "ae_2.pt"],
            {"variant": "B-4x"},
            "ae_1.pt, ae_2.pt; choose one by --tokenizer",
        ),
    ],
)
def test_a_repository_with_none_or_several_is_refused(files: list[str], options: dict, message: str) -> None:
    with pytest.raises(HubError, match=message):
        needed_files(files, **{"variant": None, "tokenizer": None, **options})


def test_a_pushed_bundle_opens_by_its_name(
    served: Hub, exported: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = exported("cc_1x")
    arguments = ["push", str(bundle.folder), f"{OWNER}/small"]
    assert main(arguments) == 1
    assert "say it with --license" in capsys.readouterr().err
    assert main([*arguments, "--license", "apache-2.0"]) == 0
    assert f"{OWNER}/small/commit/" in capsys.readouterr().out
    card = (served.root / OWNER / "small" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n") and "| head | fp32 |" in card
    with Pipeline.from_pretrained(f"{OWNER}/small", threads=1) as pipeline:
        assert pipeline.bundle.digest == bundle.digest
        assert len(pipeline(1, num_inference_steps=1).images) == 1


def test_a_card_says_what_a_calibration_lost(
    exported: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(exported("cc_1x").folder, tmp_path / "calibrated"))
    report = ROOT / "docs" / "quality" / "digits-4x-int8" / "report.json"
    (folder / "calibration").mkdir()
    shutil.copy(report, folder / "calibration")
    assert main(["push", str(folder), "a/b", "--license", "mit", "--dry-run"]) == 0
    forced = json.loads(report.read_text(encoding="utf-8"))["bits"]["forced"]
    assert f"bit flips: {100 * forced:.3f} % under teacher forcing" in capsys.readouterr().out
    for spoilt in ("{", "[]", "{}", '{"bits": 1, "images": 2, "bundle": 3}'):
        (folder / "calibration" / "report.json").write_text(spoilt, encoding="utf-8")
        assert main(["push", str(folder), "a/b", "--license", "mit", "--dry-run"]) == 1
        assert "calibrate the bundle again" in capsys.readouterr().err
    assert main(["push", str(folder), "without-owner", "--license", "mit", "--dry-run"]) == 1
    assert "'without-owner' is not the name of a repository; write OWNER/NAME" in capsys.readouterr().err


def test_what_a_manifest_says_stays_on_its_line_of_a_card(
    exported: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"exporter": "\x1b[2Jx\n---", "hub": "a/b\nlicense: mit", "license": "mit\nbase_model: a/b"}
    replace(exported("cc_1x"), folder=tmp_path, links={}, provenance=said).write()
    for named in ("", "mit\nbase_model: a/b", "\x1b[2J"):
        assert main(["push", str(tmp_path), "a/b", "--license", named, "--dry-run"]) == 1
        assert "say it with --license" in capsys.readouterr().err
    assert main(["push", str(tmp_path), "a/b", "--license", "mit", "--dry-run"]) == 0
    card = capsys.readouterr().out
    assert "- exporter: \\x1b[2Jx\\n---\n" in card and "\nbase_model" not in card
