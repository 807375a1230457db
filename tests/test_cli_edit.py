"""Changing images from the command line, and tokenizers alone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commanding import status_of
from PIL import Image
from places import FIXTURES

from bitdance_edge.cli import main
from bitdance_edge.runtime import Bundle, Pipeline, Request, Size, fit_mask, fit_pixels, read_settings
from bitdance_edge.runtime.fit import FITS
from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.runtime_request import generation
from bitdance_edge.serve.schema import ImageRequest
from bitdance_edge.serve.settings import ServeSettings
from bitdance_edge.serve.worker_process import warm_up

Run = Callable[..., str]
MASKS = ("own", "deep")  # the same one


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("generate", ...)``: the standard output of a command that succeeds, or the message of one that fails."""

    def command(*arguments: object, fails: bool = False) -> str:
        status = status_of(*arguments)
        said = capsys.readouterr()
        assert status in ((1, 2) if fails else (0,)), said.err
        return said.err if fails else said.out

    return command


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide picture, and masks: of its size, of the image's, and wrong ones."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(folder / "wide.png")
    mask = np.zeros((40, 60), np.uint8)
    mask[10:25, 15:40] = 255
    own = np.zeros((32, 32), np.uint8)
    own[8:24, 4:20] = 200
    images = {
        "mask": Image.fromarray(mask),
        "own": Image.fromarray(own).convert("RGB"),
        "black": Image.fromarray(own * 0),
        "white": Image.fromarray(own * 0 + 255),
        "other": Image.fromarray(own[:16]),
        "colors": Image.fromarray(np.stack([own, own, own * 0], axis=-1)),
        "clear": Image.fromarray(np.stack([own, own, own, own], axis=-1)),
        "inks": Image.fromarray(np.stack([own, own, own, own], axis=-1), "CMYK"),
        "deep": Image.fromarray(own.astype(np.uint16) << 8),
        "thin": Image.fromarray(noise[:1].repeat(100, axis=1)),
    }
    for name, image in images.items():
        image.save(folder / f"{name}.{'tif' if name == 'inks' else 'png'}")
    return folder


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_an_image_of_any_size_is_redrawn_where_its_mask_is_white(
    bundle: Bundle, pictures: Path, run: Run, tmp_path: Path, fit: str
) -> None:
    size = bundle.model.default_size.pixels
    with Image.open(pictures / "wide.png") as wide, Image.open(pictures / "mask.png") as mask:
        init, white = fit_pixels(wide, size, fit), fit_mask(np.asarray(mask) > 127, size, fit)
    given = ("--init", pictures / "wide.png", "--mask", pictures / "mask.png", "--fit", fit)
    how = ("--classes", 3, "--steps", 2, "--seed", 7, "--candidates", 2, "--strength", 0.8)
    made = Path(run("generate", bundle.folder, *given, *how, "--out", tmp_path / "a").strip())
    with Pipeline.open(bundle.folder) as pipeline:
        asked = Request(classes=[3], steps=2, seed=7, candidates=2, strength=0.8, init=init, mask=white)
        (want,) = pipeline.generate(asked)
    pixels = np.asarray(Image.open(made))
    np.testing.assert_array_equal(pixels, want.pixels)
    np.testing.assert_array_equal(pixels[~white], init[~white])
    again = Path(run("generate", bundle.folder, "--like", made, "--out", tmp_path / "b").strip())
    assert again.read_bytes() == made.read_bytes()


def test_a_mask_of_16_bits_is_that_of_its_upper_8(bundle: Bundle, pictures: Path, run: Run, tmp_path: Path) -> None:
    how = ("--classes", 3, "--steps", 2, "--seed", 7, "--init", pictures / "wide.png")
    made = [run("generate", bundle.folder, *how, "--mask", pictures / f"{n}.png", "--out", tmp_path / n) for n in MASKS]
    own, deep = (np.asarray(Image.open(path.strip())) for path in made)
    np.testing.assert_array_equal(own, deep)


@pytest.mark.parametrize("fit", FITS)
def test_long_thin_pictures_are_fitted(fit: str) -> None:
    for shape in ((1, 5000), (5000, 1), (1, 1), (65, 2)):
        for size in (Size(width=32, height=32), Size(width=96, height=32)):
            picture = np.full((*shape, 3), 255, np.uint8)
            assert fit_pixels(picture, size, fit).max() == 255
            white = fit_mask(np.ones(shape, bool), size, fit)
            assert white.shape == (size.height, size.width) and (white.all() or fit == "contain") and white.any()


@pytest.mark.parametrize("fit", FITS)
def test_no_white_pixel_of_a_fitted_mask_is_lost(fit: str) -> None:
    for place in ((200, 300), (399, 450), (100, 151)):
        mask = np.zeros((400, 600), bool)
        mask[place] = True
        white = fit_mask(mask, Size(width=32, height=32), fit)
        assert white.sum() == 1, place


def test_a_mask_of_the_images_size_and_tokens_to_change(
    bundle: Bundle, pictures: Path, run: Run, tmp_path: Path
) -> None:
    run("tokenize", bundle.folder, pictures / "wide.png", "-o", tmp_path / "wide.npy", "--fit", "stretch")
    how = ("--classes", 3, "--steps", 2, "--seed", 7, "--mask", pictures / "own.png", "--no-blend")
    tokens = []
    for init, fit in ((pictures / "wide.png", ("--fit", "stretch")), (tmp_path / "wide.npy", ())):
        run("generate", bundle.folder, *how, "--init", init, *fit, "--tokens", tmp_path / "out.npy")
        tokens.append(np.load(tmp_path / "out.npy"))
    np.testing.assert_array_equal(*tokens)


def test_variations_say_in_their_png_how_they_were_made(
    bundle: Bundle, pictures: Path, run: Run, tmp_path: Path
) -> None:
    given = ("--init", pictures / "wide.png", "--strength", 0.5, "--classes", 3, "--steps", 2, "--seed", 7)
    made = run("generate", bundle.folder, *given, "--count", 2, "--out", tmp_path / "a").split()
    assert [read_settings(path)["strength"] for path in made] == [[0.5] * 16] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mask", "own.png"), "--mask is about the image of --init: give --init FILE too"),
        (("--strength", "0.5", "--no-blend"), "--strength, --no-blend is about the image of --init"),
        (("--init", "wide.png"), "give a mask of what to redraw, or a strength such as 0.7"),
        (("--init", "wide.png", "--strength", "1.5"), "--strength: '1.5' is not a number from 0 to 1"),
        (("--init", "wide.png", "--mask", "black.png"), "nothing would be redrawn: paint white what to redraw"),
        (("--init", "wide.png", "--mask", "white.png"), "nothing would be kept: omit the mask"),
        (("--init", "wide.png", "--mask", "other.png"), "60x40, the size of its picture, or 32x32 pixels"),
        (("--init", "wide.png", "--mask", "colors.png"), "mode RGB with colors; a mask is gray"),
        (("--init", "wide.png", "--mask", "clear.png"), "mode RGBA with transparent pixels; a mask is gray"),
        (("--init", "wide.png", "--mask", "inks.tif"), "mode CMYK; a mask is gray"),
        (("--init", "nothing.png", "--strength", "1"), "no image at nothing.png"),
        (("--init", "wide.png", "--strength", "0.5", "--candidates", "2"), "omit candidates"),
        (("--init", "wide.png", "--strength", "0.5", "--prefix", "wide.png"), "prefix and init are both given"),
    ],
)
def test_a_wrong_edit_is_one_line_that_says_what_to_do(
    bundle: Bundle,
    pictures: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(pictures)
    before = set(pictures.iterdir())
    assert message in run("generate", bundle.folder.resolve(), "--classes", 0, *options, fails=True)
    assert set(pictures.iterdir()) == before


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of the five-level tokenizer among the reference's fixtures, for two sizes."""
    folder = tmp_path_factory.mktemp("tokenizer") / "vae"
    weights = FIXTURES / "vae_qae" / "state.safetensors"
    assert main(["export", str(weights), "-o", str(folder), "--sizes", "64x64,96x32", "-q"]) == 0
    return Bundle.open(folder)


def test_a_tokenizer_alone_gives_the_codes_of_the_reference(
    tokenizer: Bundle, pictures: Path, run: Run, tmp_path: Path
) -> None:
    import torch

    from bitdance_edge.model import load_tokenizer
    from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes

    assert set(tokenizer.stages) == {"decoder", "encoder"} and not tokenizer.model.generates
    model = load_tokenizer(FIXTURES / "vae_qae" / "state.safetensors")
    with Pipeline.open(tokenizer.folder) as pipeline, Image.open(pictures / "wide.png") as wide:
        for size in tokenizer.model.sizes:
            pixels = fit_pixels(wide, size)[None]
            codes = model.encode(image_from_bytes(torch.from_numpy(pixels)))
            tokens = pipeline.tokenize(pixels)
            np.testing.assert_array_equal(tokens[0], codes[0].flatten(1).T.numpy())
            decoded = image_to_bytes(model.decode(codes)).numpy()
            assert np.abs(pipeline.reconstruct(pixels).astype(int) - decoded).max() <= 1
    run("tokenize", tokenizer.folder, pictures / "wide.png", "-o", tmp_path / "wide.npy", "--size", "96x32")
    (file,) = run("decode", tokenizer.folder, tmp_path / "wide.npy", "-o", tmp_path, "--size", "96x32").split()
    run("decode", tokenizer.folder, tmp_path / "wide.npy", "-o", tmp_path / "one.png", "--size", "96x32")
    assert (tmp_path / "one.png").read_bytes() == Path(file).read_bytes()
    np.save(tmp_path / "two.npy", np.load(tmp_path / "wide.npy").repeat(2, axis=0))
    asked = ("decode", tokenizer.folder, tmp_path / "two.npy", "-o", tmp_path / "two.png", "--size", "96x32")
    assert "is one file" in run(*asked, fails=True)
    run("reconstruct", tokenizer.folder, pictures / "wide.png", "-o", tmp_path / "r.png", "--size", "96x32")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(tmp_path / "r.png")))


def test_a_tokenizer_alone_draws_nothing_and_is_inspected(tokenizer: Bundle, run: Run) -> None:
    assert "is a tokenizer, which draws nothing" in run("generate", tokenizer.folder, "--classes", 0, fails=True)
    assert "is a tokenizer alone, which draws nothing" in run("bench", tokenizer.folder, fails=True)
    shown = run("inspect", tokenizer.folder)
    assert "decoding, " in shown and "the loop" not in shown
    assert "tokenizer, 16 pixels a token of 32 bits" in shown
    assert "memory of a GPU to encode or decode 1 at once" in shown


def test_a_folder_is_reported_with_psnr_and_ssim(tokenizer: Bundle, pictures: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("wide", "own"):
        (folder / f"{name}.png").write_bytes((pictures / f"{name}.png").read_bytes())
    report = tmp_path / "report.json"
    said = run("reconstruct", tokenizer.folder, folder, "--report", report, "-o", tmp_path / "out")
    found = json.loads(report.read_text(encoding="utf-8"))
    assert [each["image"] for each in found["each"]] == ["own.png", "wide.png"]
    assert found["psnr_db"] == pytest.approx(np.mean([each["psnr_db"] for each in found["each"]]))
    assert -1 <= found["ssim"] <= 1 and found["bits_an_image"] == 16 * 32
    assert f"2 images of 512 bits, PSNR {found['psnr_db']:.2f} dB, SSIM {found['ssim']:.3f}" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"own.png", "wide.png"}
    assert "holds no image" in run("reconstruct", tokenizer.folder, tmp_path / "out" / "..", "-o", tmp_path, fails=True)
    assert "give -o PATH" in run("reconstruct", tokenizer.folder, folder, fails=True)


def test_without_its_json_only_what_is_known_is_guessed(run: Run, tmp_path: Path) -> None:
    weights = tmp_path / "ae_d32c128.safetensors"
    weights.write_bytes((FIXTURES / "vae_qae" / "state.safetensors").read_bytes())
    message = run("export", weights, "-o", tmp_path / "bundle", fails=True)
    assert "is not d16c32, d32c128, d32c256, whose configuration is known" in message
    assert "ae_d32c128_config.json" in message
    assert "multiples of 16" in run(
        "export", FIXTURES / "vae_qae" / "state.safetensors", "-o", tmp_path / "b", "--sizes", "100x64", fails=True
    )


def test_a_tokenizer_is_calibrated_on_pictures(tokenizer: Bundle, pictures: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("mask", "wide", "own"):
        (folder / f"{name}.png").write_bytes((pictures / f"{name}.png").read_bytes())
    asked = ("calibrate", tokenizer.folder, "--encoder", "int8", "-o", tmp_path / "int8")
    assert "is a tokenizer alone, calibrated on pictures" in run(*asked, fails=True)
    assert "there are 3 pictures" in run(*asked, "--pictures", folder, "--images", 2, "--held-out", 2, fails=True)
    assert "--steps is about generations" in run(*asked, "--pictures", folder, "--steps", 2, fails=True)
    assert "--head: vae has no such stage" in run(*asked, "--pictures", folder, "--head", "int8", fails=True)
    said = run(*asked, "--pictures", folder, "--images", 2, "--held-out", 1)
    report = json.loads((tmp_path / "int8" / "calibration" / "report.json").read_text(encoding="utf-8"))
    assert f"{100 * report['flipped_bits']:.2f} % of the bits of 1 held-out pictures flip" in said
    stages = Bundle.open(tmp_path / "int8").stages
    assert {name: stage.precision for name, stage in stages.items()} == {"decoder": "fp32", "encoder": "int8"}
    assert stages["encoder"].bytes < tokenizer.stages["encoder"].bytes
    run("reconstruct", tmp_path / "int8", folder, "-o", tmp_path / "out")


def test_a_server_takes_a_tokenizer_for_tokens_only(tokenizer: Bundle) -> None:
    settings = ServeSettings(bundles=(tokenizer.folder,))
    model = Catalog(settings).default
    assert model.images_at_once >= 1
    with pytest.raises(ApiError, match="is a tokenizer, which draws nothing: send images to /v1/tokens"):
        generation(ImageRequest.model_validate({"prompt": "7"}), model, settings)
    with Pipeline.open(tokenizer.folder) as pipeline:
        warm_up(pipeline)
        assert {name: time.launches for name, time in pipeline.times().items()} == {"encoder": 1, "decoder": 1}
