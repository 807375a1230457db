"""Images that are edited and varied: by OpenAI's API with files, and by img2img of web UIs."""

import base64
import io
import json
from typing import Any

import numpy as np
import openai
import pytest
from picturing import encoded, png_chunk
from PIL import Image, PngImagePlugin
from serving import Server

from bitdance_edge.runtime import GeneratedImage, Pipeline, Request


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def three(reference: Pipeline) -> GeneratedImage:
    (image,) = reference.generate(Request(classes=["3"], seed=4))
    return image


@pytest.fixture(scope="module")
def lower() -> np.ndarray:
    """A mask of the lower half, bool [32, 32]."""
    return np.repeat(np.arange(32) >= 16, 32).reshape(32, 32)


def png(pixels: np.ndarray, alpha: np.ndarray | None = None, **saved: Any) -> bytes:
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(np.where(alpha, 255, 0).astype(np.uint8)))
    file = io.BytesIO()
    image.save(file, "PNG", **saved)
    return file.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def shown(file: str | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file or ""))).convert("RGB"))


def made(reference: Pipeline, **asked: Any) -> np.ndarray:
    (image,) = reference.generate(Request(**asked))
    assert image.pixels is not None
    return image.pixels


def test_the_client_redraws_what_a_mask_leaves_transparent(
    client: openai.OpenAI, reference: Pipeline, three: GeneratedImage, lower: np.ndarray
) -> None:
    assert three.pixels is not None
    answer = client.images.edit(
        model="digits-4x",
        image=("three.png", png(three.pixels), "image/png"),
        mask=("mask.png", png(np.zeros((32, 32, 3), np.uint8), lower), "image/png"),  # the upper half is transparent
        prompt="3",
        size="auto",
        quality="high",
        input_fidelity="high",
        response_format="b64_json",
        extra_body={"seed": 8, "candidates": 2},
    )
    want = made(reference, classes=["3"], seed=8, init=three.pixels, mask=~lower, candidates=2)
    assert answer.data is not None and np.array_equal(shown(answer.data[0].b64_json), want)
    assert np.array_equal(want[24:], three.pixels[24:])


@pytest.mark.parametrize("kind", ["own transparency", "gray mask"])
def test_other_ways_to_say_what_is_redrawn(
    server: Server, reference: Pipeline, three: GeneratedImage, lower: np.ndarray, kind: str
) -> None:
    assert three.pixels is not None
    own = kind == "own transparency"
    files = {"image[]": ("three.png", png(three.pixels, ~lower if own else None))}
    if not own:
        files["mask"] = ("mask.png", png(np.where(lower, 255, 0).astype(np.uint8)))
    answer = server.http.post("/v1/images/edits", files=files, data={"prompt": "3", "seed": "8", "n": "1"})
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as file:
        settings = json.loads(file.info["bitdance"])
    assert settings["seed"] == 8 and "mask" in settings
    if not own:  # else what is transparent is laid over white first
        want = made(reference, classes=["3"], seed=8, init=three.pixels, mask=lower)
        assert np.array_equal(shown(image["b64_json"]), want)


def test_without_a_mask_all_of_the_image_is_varied(
    client: openai.OpenAI, reference: Pipeline, three: GeneratedImage
) -> None:
    assert three.pixels is not None
    stream: Any = client.images.edit(
        image=png(three.pixels), prompt="5", stream=True, partial_images=1, extra_body={"seed": 2, "strength": 0.8}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    want = made(reference, classes=["5"], seed=2, init=three.pixels, strength=0.8)
    assert np.array_equal(shown(events[-1].b64_json), want)


def test_a_png_made_here_is_varied_without_a_prompt(client: openai.OpenAI, server: Server, reference: Pipeline) -> None:
    (first,) = server.generate(prompt="3", seed=4).json()["data"]
    file = base64.b64decode(first["b64_json"])
    answer = client.images.create_variation(image=file, n=2, extra_body={"seed": 6})
    assert answer.data is not None and len(answer.data) == 2
    want = made(reference, classes=["3"], seed=6, init=shown(first["b64_json"]), strength=0.7)
    assert np.array_equal(shown(answer.data[0].b64_json), want)
    with pytest.raises(openai.BadRequestError, match="add the field prompt"):
        client.images.create_variation(image=png(shown(first["b64_json"])))
    told = client.images.create_variation(image=png(shown(first["b64_json"])), extra_body={"seed": 6, "prompt": "3"})
    assert told.data is not None and np.array_equal(shown(told.data[0].b64_json), want)


@pytest.mark.parametrize(
    ("files", "data", "param", "says"),
    [
        ([], {"prompt": "3"}, "image", "image is missing"),
        ([("image", b"x"), ("image", b"y")], {"prompt": "3"}, "image", "2 images are given"),
        ([("image", b"no image")], {"prompt": "3"}, "image", "not a readable PNG"),
        ([("image", png(np.zeros((32, 32, 3), np.uint8)))], {}, "prompt", "prompt is missing"),
        ([("image", png(np.zeros((32, 32, 3), np.uint8)))], {"prompt": "3", "n": "many"}, "n", "a whole number"),
        (
            [("image", png(np.zeros((32, 32, 3), np.uint8)))],
            {"prompt": "3", "strength": "2"},
            "strength",
            "1.0 or less",
        ),
        ([("image", png(np.zeros((32, 32, 3), np.uint8)))], {"prompt": "3", "colour": "1"}, "colour", "unknown field"),
        (
            [
                ("image", png(np.zeros((32, 32, 3), np.uint8))),
                ("mask", png(np.full((8, 8), 255, np.uint8))),
            ],
            {"prompt": "3"},
            "mask",
            "mask is 8x8",
        ),
    ],
)
def test_a_wrong_form_is_told_what_is_wrong(
    server: Server, files: list[tuple[str, bytes]], data: dict[str, str], param: str, says: str
) -> None:
    parts: Any = [(name, ("file.png", content)) for name, content in files]
    if not parts:
        parts = [(name, (None, value)) for name, value in data.items()]
    answer = server.http.post("/v1/images/edits", files=parts, data=data if files else None)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and says in error["message"], error


def hostile_pictures() -> dict[str, bytes]:
    """Pictures that Pillow opens, and fails or hesitates over later."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    gray, gray8 = Image.fromarray(noise[..., 0].astype(np.uint16) << 8), png(noise[..., 0])

    def carrying(settings: str) -> bytes:
        texts = PngImagePlugin.PngInfo()
        texts.add_text("bitdance", settings)
        return png(noise, pnginfo=texts)

    return {
        "truncated": png(noise)[:800],
        "a palette without colours": gray8[:8] + png_chunk(b"IHDR", gray8[16:24] + b"\x08\x03\0\0\0") + gray8[33:],
        "16 bits": encoded(gray, "PNG"),
        "16 bits, one of them clear": encoded(gray, "PNG", transparency=int(noise[0, 0, 0]) << 8),
        "Exif that is none": encoded(Image.fromarray(noise), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        "long and thin": png(np.zeros((1, 5000, 3), np.uint8)),
        "nested settings": carrying("[" * 100_000),
        "settings of no text": carrying('{"prompt": "\\ud800"}'),
        "settings of another kind": carrying('{"class": {"a": 1}}'),
    }


@pytest.mark.parametrize("name", hostile_pictures())
def test_no_picture_is_the_servers_fault(server: Server, three: GeneratedImage, name: str) -> None:
    assert three.pixels is not None
    hostile, good = hostile_pictures()[name], png(three.pixels)
    asked: dict[str, Any] = {"prompt": "3", "num_inference_steps": 1, "fit": "contain"}
    answers = [
        server.http.post("/v1/images/edits", files={"image": hostile}, data=asked),
        server.http.post("/v1/images/edits", files={"image": good, "mask": hostile}, data=asked),
        server.http.post("/v1/images/variations", files={"image": hostile}, data={"num_inference_steps": 1}),
    ]
    web: dict[str, Any] = {"prompt": "3", "steps": 1, "resize_mode": 2}
    for fields in (
        {"init_images": [base64_of(hostile)]},
        {"init_images": [base64_of(good)], "mask": base64_of(hostile)},
    ):
        answers.append(server.http.post("/sdapi/v1/img2img", json={**web, **fields}))
    for answer in answers:
        assert answer.status_code in (200, 400), answer.text
        assert answer.status_code == 200 or answer.json()["error"]["param"] in (
            "image",
            "init_images",
            "mask",
            "prompt",
        )


@pytest.mark.parametrize("charset", ["undefined", "idna", "unicode_escape", "utf-7", "utf-16"])
def test_texts_of_a_form_are_utf_8(server: Server, charset: str) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\\ud800\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = server.http.post("/v1/images/edits", content=form, headers={"Content-Type": kind})
    assert answer.status_code == 400 and "send the texts in UTF-8" in answer.json()["error"]["message"]


def test_web_uis_vary_an_image(server: Server, reference: Pipeline, three: GeneratedImage, lower: np.ndarray) -> None:
    assert three.pixels is not None
    # As stable-diffusion.cpp's and the web UI's clients send it.
    asked: dict[str, Any] = {
        "prompt": "5",
        "init_images": [f"data:image/png;base64,{base64_of(png(three.pixels))}"],
        "denoising_strength": 0.8,
        "seed": 2,
        "batch_size": 1,
        "resize_mode": 0,
        "include_init_images": False,
    }

    def images(**more: Any) -> list[np.ndarray]:
        answer = server.http.post("/sdapi/v1/img2img", json={**asked, **more})
        assert answer.status_code == 200, answer.text
        assert "init_images" not in answer.json()["parameters"]
        return [shown(file) for file in answer.json()["images"]]

    (varied,) = images()
    assert np.array_equal(varied, made(reference, classes=["5"], seed=2, init=three.pixels, strength=0.8))
    want = made(reference, classes=["5"], seed=2, init=three.pixels, mask=lower, strength=0.8)
    gray = png(np.where(lower, 255, 0).astype(np.uint8))
    for mask, inverted in (
        (gray, 0),
        (png(np.where(lower, 0, 255).astype(np.uint8)), 1),
        (png(np.zeros((32, 32, 3), np.uint8), lower), 0),
    ):
        (redrawn,) = images(mask=base64_of(mask), inpainting_mask_invert=inverted)
        assert np.array_equal(redrawn, want)
    wrong = server.http.post("/sdapi/v1/img2img", json={**asked, "init_images": []})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "init_images"
