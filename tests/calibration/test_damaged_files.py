"""Recordings, recipes and kept measurements that were damaged, and bundles that make values which are not finite."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrating import OPTIONS, altered
from mutations import damaged, mutations, rewrite, spoilt

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.kept import kept_array, kept_losses
from bitdance_edge.calibration.recipe import CalibrationRecipe, Draw
from bitdance_edge.calibration.record import DataSet, record
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.calibration.stage_file import Journal
from bitdance_edge.runtime import Bundle

DRAW = Draw(images=1, seed=5, steps=4, patches=2)
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def recorded(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return record(BundleSessions(bundle, 1), DRAW, tmp_path_factory.mktemp("recorded"))


def with_x(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    def changed(arrays: Arrays) -> Arrays:
        key = next(key for key in arrays if key.startswith("head/") and key.endswith("/x"))
        return {**arrays, key: change(arrays[key])}

    return changed


def of_the_head(change: Callable[[str], str]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {change(key) if key.startswith("head/") else key: value for key, value in arrays.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_x(lambda x: x * np.float32("nan")), "x has values that are not finite"),
        (with_x(lambda x: x[..., :-1]), r"x is float32 \[.*\], not float32 \["),
        (with_x(lambda x: x.ravel()), r"x is float32 \[\d+\], not float32 \["),
        (with_x(lambda x: x.astype(np.float64)), "x is float64"),
        (with_x(lambda x: x.astype(np.complex64)), "x is complex64"),
        (with_x(lambda x: x > 0), "x is bool"),
        (with_x(lambda x: x.astype("U4")), "x is <U4|x is str"),
        (with_x(lambda x: np.array(["a", None], object)), "cannot be read"),
        (of_the_head(lambda key: key.replace("/x", "/y")), r"it holds .*y, not"),
        (of_the_head(lambda key: f"{key}/../../x"), "it holds"),
        (of_the_head(lambda key: key.replace("head/", "head/-")), "it holds 'head/-"),
        (of_the_head(lambda key: key.replace("head/", "head/" + "9" * 40)), "it holds 'head/9999"),
        (of_the_head(lambda key: "x"), "it holds 'x'"),
    ],
)
def test_a_changed_recording_is_refused(
    change: Callable[[Arrays], Arrays], message: str, recorded: DataSet, tmp_path: Path
) -> None:
    with np.load(recorded.folder / "image-00000.npz") as data:
        arrays = {key: data[key] for key in data.files}
    np.savez(tmp_path / "image-00000.npz", allow_pickle=True, **change(arrays))  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=rf"image-00000\.npz .*({message}).*delete it and run the same command"):
        list(replace(recorded, folder=tmp_path).samples("head"))


@pytest.mark.parametrize("spoil", ["cut", "empty", "compressed", "huge header"])
def test_a_damaged_recording_is_refused(spoil: str, recorded: DataSet, tmp_path: Path) -> None:
    source, file = recorded.folder / "image-00000.npz", tmp_path / "image-00000.npz"
    content = source.read_bytes()
    if spoil in ("cut", "empty"):
        file.write_bytes(content[: len(content) // 2] if spoil == "cut" else b"")
    with zipfile.ZipFile(source) as plain:
        entries = {name: plain.read(name) for name in plain.namelist()}
    if spoil in ("compressed", "huge header"):
        method = zipfile.ZIP_DEFLATED if spoil == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", method) as written:
            for name, entry in entries.items():
                start = (
                    entry[:128].replace(b"'shape': (2", b"'shape': (2000000000000")
                    if spoil == "huge header"
                    else entry[:128]
                )
                written.writestr(name, start[:128] + entry[128:])
    with pytest.raises(CalibrationError, match=r"image-00000\.npz .*delete it and run the same command again"):
        list(replace(recorded, folder=tmp_path).samples("head"))


def test_a_recording_with_changed_bytes_is_refused_or_the_same(recorded: DataSet, tmp_path: Path) -> None:
    changed = replace(recorded, folder=tmp_path)
    want = [sample.inputs for sample in recorded.samples("tokens")]
    for content in damaged((recorded.folder / "image-00000.npz").read_bytes(), 60):
        rewrite(tmp_path / "image-00000.npz", content)
        try:
            got = [sample.inputs for sample in changed.samples("tokens")]
        except CalibrationError as error:
            assert "delete it and run the same command again" in str(error) and "\n" not in str(error)
            continue
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert all(np.array_equal(values, other[name]) for name, values in one.items())


def test_a_journal_with_changed_bytes_is_refused_or_a_part(tmp_path: Path) -> None:
    path = tmp_path / "written.jsonl"
    journal = Journal.open(path)
    for i in range(6):
        journal.add({"file": "head.onnx.data", "unit": f"w{i}", "places": {"w": [64 * i, 64]}, "end": 64 * (i + 1)})
    content, refused = path.read_bytes(), 0
    for changed in damaged(content):
        rewrite(path, changed)
        try:
            lines = Journal.open(path).lines
        except CalibrationError as error:
            refused += 1
            assert f"delete the folder {tmp_path} and run the same command again" in str(error)
            continue
        assert lines == journal.lines[: len(lines)]
        assert Journal.open(path).lines == lines
    assert refused


@pytest.mark.parametrize("name", ["times.npy", "losses.json"])
def test_kept_measurements_with_changed_bytes_are_refused_or_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "times.npy":
        np.save(path, np.arange(20.0))
    else:
        path.write_text('{"decoder.a": [0.5, null], "encoder.b": [1, 0.25]}', encoding="utf-8")
    content = path.read_bytes()
    places = [] if name == "times.npy" else [changed for _, changed in mutations(json.loads(content))]
    for changed in (*damaged(content), *places):
        rewrite(path, changed)
        try:
            kept_array(path, length=20) if name == "times.npy" else kept_losses(path)
        except CalibrationError as error:
            assert f"{path} cannot be read (" in str(error) and len(str(error)) < 600


def test_every_mutation_of_a_recipe_is_refused_or_a_recipe(tmp_path: Path) -> None:
    draw = replace(OPTIONS.recipe.draw, classes=(1, "two"), prompts=("a",))
    settings = json.loads(replace(OPTIONS.recipe, draw=draw, kept=("head:a",), smooth=0.5).to_json())
    file, taken = tmp_path / "recipe.json", 0
    for place, content in (*mutations(settings), *spoilt(json.dumps(settings).encode())):
        rewrite(file, content)
        try:
            CalibrationRecipe.read(file)
        except CalibrationError as error:
            assert len(str(error)) < 1000, place
        else:
            taken += 1
    assert taken


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }\n"]
)
def test_kept_numbers_that_are_damaged_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "times.npy").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"times\.npy cannot be read .*delete it"):
        kept_array(tmp_path / "times.npy")


@pytest.mark.parametrize(
    "values", [np.ones(3), np.full(4, np.nan), np.ones((4, 2)), np.array(1.0), np.array(["a"] * 4)]
)
def test_kept_numbers_of_another_kind_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "times.npy", values)
    with pytest.raises(CalibrationError, match="it holds something else"):
        kept_array(tmp_path / "times.npy", length=4)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": [1, "b"]}', '{"a": [1, NaN]}', "[" * 100_000])
def test_kept_losses_that_are_damaged_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "sensitivity.json").write_text(text, encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"sensitivity\.json cannot be read .*delete it"):
        kept_losses(tmp_path / "sensitivity.json")


def test_losses_that_were_kept_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "sensitivity.json").write_text('{"decoder.a": [0.5, null], "encoder.b": [1, 0.25]}', encoding="utf-8")
    assert kept_losses(tmp_path / "sensitivity.json") == {"decoder.a": (0.5, None), "encoder.b": (1, 0.25)}


@pytest.mark.parametrize(
    ("stage", "weight", "module"),
    [
        ("decoder", "tokenizer.decoder.conv_in.bias", r"tokenizer\.decoder\.conv_in"),
        ("encoder", "tokenizer.encoder.conv_out.bias", r"tokenizer\.encoder\.conv_out"),
        ("head", "head.input_proj.bias", r"head\.input_proj"),
    ],
)
def test_the_first_module_that_makes_nan_is_named(
    stage: str, weight: str, module: str, bundle: Bundle, tmp_path: Path
) -> None:
    spoiled = altered(bundle, tmp_path / "spoiled", stage, weight, lambda values: values * np.float32("nan"))
    with pytest.raises(
        CalibrationError, match=rf"{stage} makes values that are NaN or infinite, the first in {module}"
    ):
        record(BundleSessions(spoiled, 1), DRAW, tmp_path / "data")
