"""Images in files train as images in memory do: the same batches, the same weights, from any kind of data."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance_edge.training.data import digits, split_records
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet, batch_rows
from bitdance_edge.training.recipes import TokenizerRecipe
from bitdance_edge.training.records import open_records
from bitdance_edge.training.streamed import StreamedImages
from bitdance_edge.training.tokenizer import TokenizerObjective
from bitdance_edge.training.trainer import Progress, Trainer

SIZE = 16


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


@pytest.fixture(scope="module")
def source() -> ImageSet:
    """Four classes of digits, 120 images."""
    data = digits(SIZE)
    chosen = np.flatnonzero(data.labels.numpy() < 4)[:120]
    return ImageSet(images=data.images[chosen], labels=data.labels[chosen], class_names=("0", "1", "2", "3"))


def members(source: ImageSet) -> Iterator[tuple[bytes, int]]:
    return ((png(image), label) for image, label in zip(source.images.numpy(), source.labels.tolist(), strict=True))


def write_tar(file: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module", params=["folder", "tar", "parquet"])
def shards(request: pytest.FixtureRequest, source: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "folder":
        for number, (content, label) in enumerate(members(source)):
            (folder / str(label)).mkdir(exist_ok=True)
            (folder / str(label) / f"{number:04d}.png").write_bytes(content)
    elif request.param == "tar":
        for shard, rows in enumerate(np.array_split(np.arange(len(source)), 5)):
            contents = {}
            for number, (content, label) in zip(rows, members(source[rows]), strict=True):
                contents |= {f"{number:04d}.png": content, f"{number:04d}.cls": str(label).encode()}
            write_tar(folder / f"{shard}.tar", contents)
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        for shard, rows in enumerate(np.array_split(np.arange(len(source)), 5)):
            images = [{"bytes": content, "path": None} for content, _ in members(source[rows])]
            table = pa.table({"image": images, "label": source.labels[rows].tolist()})
            pq.write_table(table, folder / f"{shard}.parquet", row_group_size=7)
    return folder


def test_a_streamed_epoch_is_that_of_images_in_memory(
    shards: Path, tokenizer_recipe: TokenizerRecipe, tmp_path: Path
) -> None:
    recipe = replace(tokenizer_recipe, size=SIZE, batch_size=16, steps=8, score_every=4)  # 96 images: an epoch and more
    curves, weights = [], []
    for stream in (False, True):
        training, held_out = split_records(open_records(shards, captions=False), SIZE, stream=stream)
        assert isinstance(training, StreamedImages if stream else ImageSet)
        torch.manual_seed(0)
        objective = TokenizerObjective(recipe)
        curve: list[tuple[int, float, float | None]] = []

        def watch(progress: Progress, loss: float, _speed: float, curve: list = curve) -> None:
            curve.append((progress.step, loss, progress.score))

        Trainer(objective, recipe, training, held_out, tmp_path / str(stream), watch=watch).run()
        curves.append(curve)
        weights.append(objective.state_dict())
    assert curves[0] == curves[1]
    assert [step for step, _, _ in curves[0]] == [4, 8]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_an_epoch_in_windows_shows_every_image_once_and_few_shards_at_a_time(shards: Path) -> None:
    records = open_records(shards, captions=False)
    records.window = 30
    images = StreamedImages(records, np.arange(len(records)), SIZE)
    epochs = [images.order(3, epoch) for epoch in range(2)]
    assert [sorted(order) for order in epochs] == [list(range(120))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert images.order(3, 0).tolist() == epochs[0].tolist()
    for order in epochs if shards.name[0] != "f" else []:
        assert all(len(set(records.shards[order[start : start + 30]])) <= 3 for start in range(0, 120, 30))
    step = batch_rows(len(images), 8, 14, 3, images.order)  # the last of the first epoch
    batch = images[step]
    assert step.tolist() == epochs[0][112:].tolist()
    assert batch.labels.tolist() == records.labels[step].tolist()


def test_a_streamed_run_resumes_in_the_middle_of_an_epoch(
    shards: Path, tokenizer_recipe: TokenizerRecipe, tmp_path: Path
) -> None:
    recipe = replace(tokenizer_recipe, size=SIZE, batch_size=8, steps=6)
    states = []
    for parts in (1, 2):
        records = open_records(shards, captions=False)
        records.window = 30
        training, held_out = split_records(records, SIZE, stream=True)
        for part in range(parts):
            torch.manual_seed(0)
            objective = TokenizerObjective(recipe)
            trainer = Trainer(objective, recipe, training, held_out, tmp_path / str(parts), resume=part > 0)
            if part + 1 < parts:
                objective.register_forward_hook(interrupt_at(3))
                with pytest.raises(KeyboardInterrupt):
                    trainer.run()
            else:
                trainer.run()
                states.append(objective.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def interrupt_at(step: int):
    import signal

    calls = iter(range(1, 1000))
    return lambda *_: signal.raise_signal(signal.SIGINT) if next(calls) == step else None


def test_captions_come_from_tars_tables_and_text_files(tmp_path: Path) -> None:
    picture = png(np.zeros((8, 12, 3), np.uint8))
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "a.png").write_bytes(picture)
    (tmp_path / "folder" / "sub" / "a.txt").write_text("a black field\n", encoding="utf-8")
    contents = {"x/1.png": picture, "x/1.txt": b"one", "x/2.png": picture, "x/2.json": b'{"caption": "two"}'}
    write_tar(tmp_path / "shard.tar", contents)
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"jpg": [picture], "prompt": ["three"]}), tmp_path / "shard.parquet")
    found = []
    for path in ("folder", "shard.tar", "shard.parquet"):
        records = open_records(tmp_path / path, captions=True)
        images = StreamedImages(records, np.arange(len(records)), 4)
        found += images[np.arange(len(images))].captions
        assert images[np.array([0])].images.shape == (1, 4, 4, 3)
    assert found == ["a black field", "one", "two", "three"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"a.png": b"", "a.json": b"{}"}, r"shard\.tar: the image at byte \d+ has no field label or class"),
        ({"a.png": b"", "a.json": b"{"}, "what describes it cannot be read"),
        ({"a.png": b"", "a.json": b"[" * 100_000}, "what describes it cannot be read"),
        ({"a.png": b"", "a.json": b'{"label": 1e400}'}, "class is 'inf'; it must be a number"),
        ({"a.png": b"", "a.json": b'{"label": 1.5}'}, "class is '1.5'; it must be a number"),
        ({"a.png": b"", "a.json": b'{"label": true}'}, "class is 'True'; it must be a number"),
        (
            {"a.png": b"", "a.json": b" " * 4_000_001},
            "described in 4,000,001; the limits are 200,000,000 and 4,000,000",
        ),
        ({"a.png": b"", "a.cls": b"cat"}, "class is 'cat'; it must be a number"),
        ({"a.png": b"", "a.txt": b"x"}, r"shard\.tar: a has \.png, \.txt, but no \.cls or \.json member"),
        ({"a.txt": b"x"}, "holds no image"),
    ],
)
def test_errors_of_tars_name_file_and_record(contents: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "shard.tar", contents)
    with pytest.raises(TrainingError, match=message):
        open_records(tmp_path / "shard.tar", captions=False)


@pytest.mark.parametrize("caption", ['"\\ud800"', "5", "[]", "{}"])
def test_a_caption_that_is_no_text_is_one_error(caption: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "shard.tar", {"a.png": b"", "a.json": f'{{"caption": {caption}}}'.encode()})
    with pytest.raises(TrainingError, match=r"shard\.tar: .* has the caption .*, which is no text"):
        open_records(tmp_path / "shard.tar", captions=True).caption(0)


@pytest.mark.parametrize("cut", [0.3, 0.7])
def test_a_truncated_or_damaged_shard_is_one_error(cut: float, tmp_path: Path, source: ImageSet) -> None:
    contents = {f"{n}.png": content for n, (content, _) in enumerate(members(source[np.arange(4)]))}
    file = tmp_path / "shard.tar"
    write_tar(file, {**contents, "9.cls": b"1"})
    file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size)])
    with pytest.raises(TrainingError, match=r"shard\.tar"):
        open_records(file, captions=False)
    header, whole = tarfile.TarInfo("long"), file.read_bytes()
    header.type, header.size = tarfile.XHDTYPE, 2**31
    file.write_bytes(header.tobuf() + whole)
    with pytest.raises(TrainingError, match=r"shard\.tar .*a header has 2,147,483,648 bytes"):
        open_records(file, captions=False)
    (tmp_path / "shard.parquet").write_bytes(b"PAR1 cut")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with pytest.raises(TrainingError, match=r"shard\.parquet is not a whole Parquet file"):
        open_records(tmp_path / "shard.parquet", captions=False)
    table = pa.table({"image": [b""] * 100, "label": range(100)})
    pq.write_table(table, tmp_path / "shard.parquet", compression="zstd")
    content = (tmp_path / "shard.parquet").read_bytes()
    at = content.rindex(b"\x28\xb5\x2f\xfd")  # where the last column is compressed
    (tmp_path / "shard.parquet").write_bytes(content[:at] + bytes(16) + content[at + 16 :])
    with pytest.raises(TrainingError, match=r"shard\.parquet cannot be read"):
        open_records(tmp_path / "shard.parquet", captions=False)


def test_shards_of_some_classes_train_without_images_of_the_others(tmp_path: Path) -> None:
    picture = png(np.zeros((8, 8, 3), np.uint8))
    contents = {}
    for number in range(10):
        contents |= {f"{number}.png": picture, f"{number}.cls": b"7" if number % 2 else b"3"}
    write_tar(tmp_path / "shard.tar", contents)
    training, held_out = split_records(open_records(tmp_path, captions=False), 8, stream=False)
    assert isinstance(training, ImageSet) and training.class_names == tuple("01234567")
    assert [sorted(part.labels.tolist()) for part in (training, held_out)] == [[3] * 4 + [7] * 4, [3, 7]]


def test_a_path_without_data_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no data at .*missing; give a folder of images, or of .tar or .parquet"):
        open_records(tmp_path / "missing", captions=False)
    (tmp_path / "a.txt").touch()
    with pytest.raises(TrainingError, match=r"a\.txt is no \.tar and no \.parquet shard"):
        open_records(tmp_path / "a.txt", captions=False)
    (tmp_path / "a.tar").touch()
    (tmp_path / "b.parquet").touch()
    with pytest.raises(TrainingError, match=r"holds \.tar and \.parquet shards"):
        open_records(tmp_path, captions=False)
