"""Scores of bundles, shards, folders and files, and images as others' scorers read them."""

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bulking import made
from commanding import status_of
from features import write_network
from PIL import Image

from bitdance_edge.evaluation.extractor import Extractor
from bitdance_edge.runtime import Bundle, save_png
from bitdance_edge.runtime.quality import frechet_distance, psnr
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.features import read_features
from bitdance_edge.scale.layouts import write_layout
from bitdance_edge.scale.npz import NpzReader
from bitdance_edge.scale.pairs import compare
from bitdance_edge.scale.plan import Plan, make_plan
from bitdance_edge.scale.prompts import read_prompts
from bitdance_edge.scale.reference import open_reference
from bitdance_edge.scale.scores import difference, scores
from bitdance_edge.scale.sources import Job, open_source


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("network") / "net.onnx")


@pytest.fixture(scope="module")
def extractor(network: Path) -> Extractor:
    return Extractor(network, threads=1)


@pytest.fixture(scope="module")
def pixels(whole: Path) -> np.ndarray:
    """All images of the job."""
    return np.stack([row.pixels for row in Job.open(whole).rows()])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    """A folder of other images, of the job's size."""
    size, folder = Job.open(whole).size, tmp_path_factory.mktemp("real")
    for i, picture in enumerate(np.random.default_rng(1).integers(0, 256, (30, size.height, size.width, 3), np.uint8)):
        save_png(Image.fromarray(picture), folder / f"{i:02d}.png")
    return folder


def test_shards_a_folder_and_a_file_of_the_same_images_score_the_same(
    whole: Path, real: Path, pixels: np.ndarray, network: Path, tmp_path: Path
) -> None:
    for i, picture in enumerate(pixels):
        save_png(Image.fromarray(picture), tmp_path / "folder" / f"{i:03d}.png")
    assert status_of("evaluate", whole, "--npz", tmp_path / "all.npz") == 0
    found = {}
    for source in (whole, tmp_path / "folder", tmp_path / "all.npz"):
        report = tmp_path / f"{source.name}.json"
        options = ("--features", network, "--reference", real, "--report", report, "--work", tmp_path / "work")
        assert status_of("evaluate", source, *options, "--resamples", 5, "--threads", 1) == 0
        found[source.name] = json.loads(report.read_text(encoding="utf-8"))["sets"][source.name]
    assert set(found["job"]) == {"frechet", "inception_score", "class_agreement", "precision", "recall"}
    assert found["all.npz"] == found["job"]
    assert found["folder"] == {name: figure for name, figure in found["job"].items() if name != "class_agreement"}


def test_the_distance_is_that_of_the_features(
    whole: Path, real: Path, pixels: np.ndarray, extractor: Extractor, tmp_path: Path
) -> None:
    job = Job.open(whole)
    reference = open_reference(real, extractor, job.size, tmp_path)
    found = scores(read_features(job, extractor, tmp_path), reference, extractor, 0)
    pictures = np.stack([np.asarray(Image.open(file)) for file in sorted(real.iterdir())])
    want = frechet_distance(extractor.read(pixels).features, extractor.read(pictures).features)
    assert found["frechet"].value == pytest.approx(want, rel=1e-12) and found["frechet"].error is None
    wanted = [i % 4 for i in range(len(pixels))]
    agreement = np.mean(extractor.read(pixels).classes == np.array(wanted))
    assert found["class_agreement"].value == pytest.approx(agreement)


def test_saved_statistics_give_the_same_distance_and_belong_to_their_network(
    whole: Path, real: Path, network: Path, extractor: Extractor, tmp_path: Path
) -> None:
    statistics = tmp_path / "real.npz"
    options = ("--features", network, "--work", tmp_path, "--resamples", 0)
    assert status_of("evaluate", real, *options, "--save-statistics", statistics) == 0
    found = read_features(Job.open(whole), extractor, tmp_path)
    of_images, of_file = (
        open_reference(path, extractor, Job.open(whole).size, tmp_path) for path in (real, statistics)
    )
    first, second = (scores(found, reference, extractor, 0) for reference in (of_images, of_file))
    assert second["frechet"].value == pytest.approx(first["frechet"].value) and "precision" not in second
    other = Extractor(write_network(tmp_path / "other.onnx", size=8))
    with pytest.raises(ScaleError, match="statistics of another network"):
        open_reference(statistics, other, Job.open(whole).size, tmp_path)


def test_a_reference_may_hold_statistics_and_images_as_adms_do(
    whole: Path, real: Path, extractor: Extractor, tmp_path: Path
) -> None:
    size = Job.open(whole).size
    pictures = np.stack([np.asarray(Image.open(file)) for file in sorted(real.iterdir())])
    np.savez(tmp_path / "adm.npz", arr_0=pictures, mu=np.zeros(12), sigma=np.eye(12), mu_s=np.zeros(3))
    reference = open_reference(tmp_path / "adm.npz", extractor, size, tmp_path)
    assert reference.gaussian.mean.tolist() == [0] * 12
    assert reference.features is not None and reference.features.shape == (30, 12)


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"mu": np.zeros(12)}, "holds mu; statistics are mu and sigma"),
        ({"mu": np.zeros(12), "sigma": np.eye(3)}, r"has mu \[12\] and sigma \[3, 3\]"),
        ({"other": np.zeros(3)}, "must hold arr_0, or mu and sigma"),
        ({"arr_0": np.zeros((3, 8, 8, 3))}, "images are uint8"),
        ({"arr_0": np.zeros((1, 8, 8, 3), np.uint8)}, "has 1 image; a distribution needs at least 2"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.eye(2)}, r"its arr_1 is float64 \[2, 2\]"),
        ({"mu": np.zeros(12), "sigma": np.full((12, 12), np.nan)}, "not finite"),
    ],
)
def test_files_that_are_no_reference_are_refused(
    arrays: dict[str, np.ndarray], said: str, whole: Path, extractor: Extractor, tmp_path: Path
) -> None:
    np.savez(tmp_path / "reference.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ScaleError, match=said):
        open_reference(tmp_path / "reference.npz", extractor, Job.open(whole).size, tmp_path)


def test_one_image_is_no_distribution(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8))
    options = ("--features", network, "--work", tmp_path, "--save-statistics", tmp_path / "statistics.npz")
    assert status_of("evaluate", tmp_path / "one.npz", *options) == 1
    assert "one.npz has 1 image; a distribution needs at least 2" in capsys.readouterr().err
    assert not (tmp_path / "statistics.npz").exists()


def test_a_damaged_array_beside_the_images_is_said(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8), arr_1=np.array([7, 9]))
    content = bytearray(path.read_bytes())
    content[content.rindex(np.array([7, 9]).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ScaleError, match="cannot be read: Bad CRC-32"):
        list(open_source(path).batches())


def test_arrays_beside_the_images_have_bounds(tmp_path: Path) -> None:
    path, header = tmp_path / "a.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
    for content in (header.getvalue(), bytes(100_000_001)):
        np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8))
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("arr_1.npy", content)
        with NpzReader(path) as reader, pytest.raises(ValueError, match=r"Unable to allocate|the limit is 100,000,000"):
            reader.arrays()


def test_statistics_of_other_features_are_refused(whole: Path, extractor: Extractor, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", mu=np.zeros(5), sigma=np.eye(5))
    reference = open_reference(tmp_path / "reference.npz", extractor, Job.open(whole).size, tmp_path)
    found = read_features(Job.open(whole), extractor, tmp_path)
    with pytest.raises(ScaleError, match="5 features, and the network gives 12"):
        scores(found, reference, extractor, 0)


def test_features_are_read_once(
    whole: Path, extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_features(Job.open(whole), extractor, tmp_path)
    kept = list(tmp_path.rglob("*.npz"))
    monkeypatch.setattr(Extractor, "read", lambda *_: pytest.fail("read again"))
    assert np.array_equal(read_features(Job.open(whole), extractor, tmp_path).read.features, first.read.features)
    monkeypatch.undo()
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    assert np.array_equal(read_features(Job.open(whole), extractor, tmp_path).read.features, first.read.features)


def test_two_bundles_are_compared_seed_by_seed(bundle: Bundle, network: Path, real: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle.folder, other)
    opened = Bundle.open(other)
    replace(opened, provenance={**opened.provenance, "copied": "yes"}).write()  # the same graphs, and another digest
    options = ("--count", 2, "--seed", 3, "--steps", 1, "--threads", 1, "--work", tmp_path / "work")
    report = tmp_path / "report.json"
    scored = ("--features", network, "--reference", real, "--report", report, "--resamples", 5)
    assert status_of("evaluate", bundle.folder, "--against", other, *options, *scored) == 0
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["images"] == 2 * bundle.model.num_classes and not found["standard_inception"]
    assert found["pairs"]["bits_flipped"]["value"] == 0 and found["pairs"]["identical"]["value"] == 1
    assert found["pairs"]["ssim"]["value"] == 1 and "psnr_db" not in found["pairs"]
    assert {figure["value"] for figure in found["difference"].values()} == {0}
    assert {figure["error"] for figure in found["difference"].values()} == {0}


def test_pairs_give_the_bits_and_psnr_of_the_images(bundle: Bundle, tmp_path: Path) -> None:
    plans = [
        make_plan(str(bundle.folder), classes=[0, 1], count=3, file_format="npz", settings={"steps": 1, "guidance": g})
        for g in (1.0, 3.0)
    ]
    jobs = [Job(made(plan, tmp_path / str(i)), plan, str(i)) for i, plan in enumerate(plans)]
    with pytest.raises(ScaleError, match="differ in settings"):
        compare(*jobs)
    jobs[1] = replace(jobs[1], plan=replace(plans[1], settings=plans[0].settings))
    pairs = compare(*jobs)
    first, second = (list(job.rows()) for job in jobs)
    assert first[0].bits is not None and pairs.flipped is not None and pairs.flipped.mean() > 0
    figures = pairs.figures(10)
    want = psnr(np.stack([row.pixels for row in first]), np.stack([row.pixels for row in second]))
    assert figures["psnr_db"].value == pytest.approx(want) and (figures["psnr_db"].error or 0) > 0


def test_the_difference_of_the_same_images_has_no_error(
    whole: Path, real: Path, extractor: Extractor, tmp_path: Path
) -> None:
    found = read_features(Job.open(whole), extractor, tmp_path)
    reference = open_reference(real, extractor, Job.open(whole).size, tmp_path)
    for figure in difference(found, found, reference, extractor, 3).values():
        assert (figure.value, figure.error) == (0, 0)


def test_all_images_in_one_file_as_adm_reads_it(whole: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    assert status_of("evaluate", whole, "--npz", tmp_path / "all.npz") == 0
    with np.load(tmp_path / "all.npz") as found:
        assert np.array_equal(found["arr_0"], pixels) and found["arr_1"].tolist() == [i % 4 for i in range(len(pixels))]
    with NpzReader(tmp_path / "all.npz") as reader:
        assert np.array_equal(np.concatenate(list(reader.batches(7))), pixels)


@pytest.fixture(scope="module")
def captioned(word_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Four images of each of two captions."""
    plan: Plan = make_plan(
        str(word_bundle.folder),
        prompts=["a red fish", "red fish"],
        count=4,
        settings={"steps": 1, "size": "64x64"},
    )
    return Job(made(plan, tmp_path_factory.mktemp("captioned")), plan, "captioned")


def test_genevals_scorer_finds_its_folders(captioned: Job, tmp_path: Path) -> None:
    lines = ['{"tag": "colors", "prompt": "a red fish"}', '{"tag": "single", "include": [], "prompt": "red fish"}']
    metadata, out = tmp_path / "evaluation_metadata.jsonl", tmp_path / "out"
    metadata.write_text("\n".join(lines) + "\n")
    options = ("--layout", "geneval", "--prompts", metadata, "--out", out)
    assert status_of("evaluate", captioned.folder, *options) == 0
    rows = list(captioned.rows())
    for number in (0, 1):
        folder = out / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == json.loads(lines[number])
        assert sorted(file.name for file in (folder / "samples").iterdir()) == [f"{i:04d}.png" for i in range(4)]
        for sample in range(4):
            picture = np.asarray(Image.open(folder / "samples" / f"{sample:04d}.png"))
            assert np.array_equal(picture, rows[2 * sample + number].pixels)


def test_dpgs_scorer_finds_its_pictures(captioned: Job, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "7.txt").write_text("a red fish\n")
    (prompts / "12.txt").write_text("red fish")
    assert write_layout(captioned, read_prompts(prompts), "dpg", tmp_path / "out") == 2
    rows = list(captioned.rows())
    picture = np.asarray(Image.open(tmp_path / "out" / "12.png"))
    for sample, (top, left) in enumerate([(0, 0), (0, 64), (64, 0), (64, 64)]):  # as its scorer crops them
        assert np.array_equal(picture[top : top + 64, left : left + 64], rows[2 * sample + 1].pixels)


def test_layouts_need_the_prompts_of_the_job(captioned: Job, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a red fish\nred fish\n")
    (tmp_path / "other.txt").write_text("a red fish\n")
    plain = read_prompts(tmp_path / "plain.txt")
    for prompts, layout, said in [
        (read_prompts(tmp_path / "other.txt"), "dpg", "not made of these 1 prompts"),
        (plain, "geneval", "evaluation_metadata.jsonl"),
        (plain, "dpg", "names of its .txt files"),
    ]:
        with pytest.raises(ScaleError, match=said):
            write_layout(captioned, prompts, layout, tmp_path / "out")


def test_what_has_no_effect_is_refused(
    whole: Path, real: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in [
        ((whole,), "nothing to do"),
        ((whole, "--reference", real, "--npz", tmp_path / "a.npz"), "--reference is for scores"),
        ((whole, "--npz", tmp_path / "a.npz", "--report", tmp_path / "a.json"), "--report is for figures"),
        ((whole, "--npz", tmp_path / "a.npz", "--out", tmp_path), "--out is for --layout"),
        ((whole, "--layout", "other", "--prompts", real, "--out", tmp_path), "--layout is 'other'"),
        ((whole, "--layout", "dpg"), "--layout needs"),
        ((real, "--layout", "dpg", "--prompts", real, "--out", tmp_path / "o"), "--layout needs"),
        ((whole, "--features", network, "--count", 3), "has its images already: omit --count"),
        ((real, "--against", whole), "has no seeds to compare by"),
        ((tmp_path / "nothing", "--features", network), "is no folder and no .npz file"),
        ((tmp_path, "--features", network), "holds 0 images"),
    ]:
        assert status_of("evaluate", *arguments, "--work", tmp_path / "work") == 1
        assert said in capsys.readouterr().err


def test_a_job_that_is_not_made_is_refused(job: Plan, whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "plan.json", tmp_path)
    with pytest.raises(ScaleError, match=r"12 of 12 shards .* are not made; make them with: bitdance-edge bulk"):
        open_source(tmp_path)
