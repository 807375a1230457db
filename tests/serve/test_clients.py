"""Clients of OpenAI's API: fields and values that they send, sizes and names built into them, and the npm client."""

import base64
import inspect
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from picturing import encoded
from PIL import Image
from serving import Server

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.bundle.pack import pack_bundle
from bitdance_edge.serve.app import create_app
from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.edit_form import EditForm, VariationForm
from bitdance_edge.serve.errors import ApiError, ServeError
from bitdance_edge.serve.schema import ImageRequest
from bitdance_edge.serve.service import Service
from bitdance_edge.serve.settings import ServeSettings

# LibreChat: api/app/clients/tools/structured/OpenAIImageTools.js; its prompt and size are the user's.
LIBRE_CHAT = {
    "model": "gpt-image-1",
    "prompt": "7",
    "n": 1,
    "background": "auto",
    "output_format": "png",
    "quality": "auto",
    "size": "1024x1024",
}
# Open WebUI: backend/open_webui/routers/images.py, engine openai.
OPEN_WEBUI = {"model": "dall-e-3", "prompt": "7", "n": 1, "size": "512x512", "response_format": "b64_json"}
NODE_MODULES = Path(__file__).parents[2] / "build" / "npm" / "node_modules"
NPM = """
const { OpenAI, toFile } = require("openai");
const client = new OpenAI({ baseURL: process.argv[1], apiKey: "none", maxRetries: 0 });
(async () => {
  const asked = { model: "gpt-image-1", prompt: "7", size: "1024x1024", quality: "high", seed: 3 };
  const whole = await client.images.generate(asked);
  const events = [];
  const stream = await client.images.generate({ ...asked, stream: true, partial_images: 1 });
  for await (const event of stream) events.push(event);
  const refused = await client.images.generate({ ...asked, background: "transparent" }).catch((error) => error);
  const file = await toFile(Buffer.from(whole.data[0].b64_json, "base64"), "seven.png", { type: "image/png" });
  const change = { model: "gpt-image-1", image: file, prompt: "1", seed: 4, strength: 0.8 };
  const edited = await client.images.edit(change);
  const varied = await client.images.createVariation({ image: file, seed: 5 });
  console.log(JSON.stringify({
    edited: edited.data[0].b64_json, varied: varied.data[0].b64_json,
    whole: whole.data[0].b64_json, streamed: events.at(-1).b64_json, events: events.map((event) => event.type),
    status: refused.status, message: refused.message,
  }));
})();
"""


@pytest.fixture(scope="module")
def obliging(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with names and sizes for clients that have them built in."""
    aliases = ("--alias", "gpt-image-1=digits-4x", "--alias", "dall-e-3=digits-4x")
    started = Server(tmp_path_factory.mktemp("obliging") / "log", digits_bundle, *aliases, "--nearest-size")
    yield started.wait_ready()
    started.stop()


@pytest.fixture(scope="module")
def client(obliging: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{obliging.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("asked", [LIBRE_CHAT, OPEN_WEBUI])
def test_requests_of_clients_with_a_name_and_a_size_built_in(obliging: Server, asked: dict[str, Any]) -> None:
    answer = obliging.http.post("/v1/images/generations?api-version=2025-04-01", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == "32x32"


@pytest.mark.parametrize(
    "fields",
    [
        *({"quality": quality} for quality in ("auto", "standard", "hd", "low", "medium", "high", "xhigh", "max")),
        {"complexity": "high", "safety_identifier": "someone", "frame_count": None, "svg": None},
        {"style": "natural", "user": "someone", "response_format": "b64_json"},
        {"background": "opaque", "moderation": "low", "output_format": "png", "output_compression": 100},
    ],
)
def test_values_that_change_nothing_are_accepted(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    answer = client.images.generate(prompt="7", extra_body={"seed": 1, "num_inference_steps": 1, **fields})
    plain = client.images.generate(prompt="7", extra_body={"seed": 1, "num_inference_steps": 1})
    assert answer.data == plain.data


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"response_format": "url"}, "this server keeps no files: use 'b64_json'"),
        ({"background": "transparent"}, "opaque images only"),
        ({"quality": "ultra"}, "quality is 'ultra'; it must be 'auto', 'standard'"),
        ({"output_format": "gif"}, "output_format is 'gif'; it must be 'png', 'jpeg' or 'webp'"),
        ({"frame_count": 2}, "frame_count is about GIFs"),
        ({"frame_duration_ms": 50}, "frame_duration_ms is about GIFs"),
        ({"svg": {"model": "a"}}, "svg is about images of lines"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_reason(
    client: openai.OpenAI, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        client.images.generate(prompt="7", extra_body=fields)


def test_a_field_of_edits_that_cannot_be_had_is_refused_with_its_reason(server: Server) -> None:
    picture = encoded(Image.new("RGB", (32, 32)), "PNG")
    files = {"image": picture, "markup": picture}
    answer = server.http.post("/v1/images/edits", files=files, data={"prompt": "7"})
    assert answer.status_code == 400 and "markup is not understood" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "fields"), [("generate", ImageRequest), ("edit", EditForm), ("create_variation", VariationForm)]
)
def test_every_field_that_the_client_has_is_known(method: str, fields: type[ImageRequest]) -> None:
    has = set(inspect.signature(getattr(openai.OpenAI(api_key="none").images, method)).parameters)
    assert has - {"extra_headers", "extra_query", "extra_body", "timeout"} <= set(fields.model_fields)


def test_the_npm_client(obliging: Server, reference: Pipeline) -> None:
    node = shutil.which("node")
    if node is None or not (NODE_MODULES / "openai").is_dir():
        pytest.skip("no npm client here: make build/npm, with node and npm installed")
    command = [node, "-e", NPM, f"{obliging.url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, env={"NODE_PATH": str(NODE_MODULES)}, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    seven = Request(classes=["7"], seed=3)
    (drawn,) = reference.generate(seven)
    changed = replace(seven, init=drawn.pixels)
    for asked, names in (
        (seven, ("whole", "streamed")),
        (replace(changed, classes=["1"], seed=4, strength=0.8), ("edited",)),
        (replace(changed, seed=5, strength=0.7), ("varied",)),
    ):
        (want,) = reference.generate(asked)
        for name in names:
            got = np.asarray(Image.open(io.BytesIO(base64.b64decode(told[name]))))
            assert want.pixels is not None and np.array_equal(got, want.pixels), name
    assert told["events"] == ["image_generation.partial_image", "image_generation.completed"]
    assert told["status"] == 400 and "opaque images only" in told["message"]


def test_aliases_are_listed_and_share_batches_with_their_model(obliging: Server) -> None:
    listed = [model["id"] for model in obliging.http.get("/v1/models").json()["data"]]
    assert listed == ["digits-4x", "gpt-image-1", "dall-e-3"]
    assert obliging.http.get("/v1/models/gpt-image-1").json()["id"] == "gpt-image-1"
    asked = {"prompt": "7", "seed": 1, "num_inference_steps": 1}
    named = obliging.generate(model="gpt-image-1", **asked).json()["data"]
    assert named == obliging.generate(model="digits-4x", **asked).json()["data"]


def test_a_model_is_described_the_same_everywhere(obliging: Server, digits_bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(digits_bundle, tmp_path / digits_bundle.name))
    for path in copied.rglob("*"):
        os.utime(path, (0, 0))
    elsewhere = TestClient(create_app(Service(ServeSettings(bundles=(copied,)))), base_url="http://127.0.0.1")
    first, *aliases = obliging.http.get("/v1/models").json()["data"]
    assert elsewhere.get("/v1/models").json()["data"] == [first]
    assert aliases and first["created"] == 0


def test_an_alias_of_nothing_or_of_a_taken_name_is_refused(digits_bundle: Path) -> None:
    for aliases, says in (({"x": "other"}, "'other' is not served"), ({"digits-4x": "digits-4x"}, "already")):
        with pytest.raises(ServeError, match=says):
            Catalog(ServeSettings(bundles=(digits_bundle,), aliases=aliases))


def test_a_packed_bundle_is_served_under_the_name_of_its_folder(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITDANCE_EDGE_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / f"{digits_bundle.name}.tar"
    pack_bundle(Bundle.open(digits_bundle), archive, [], engines_only=False)
    assert list(Catalog(ServeSettings(bundles=(archive,))).models) == [digits_bundle.name]
    with pytest.raises(ServeError, match=f"two bundles are named '{digits_bundle.name}'"):
        Catalog(ServeSettings(bundles=(archive, digits_bundle)))


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [("1024x1024", "64x64"), ("1792x1024", "192x128"), ("1x1", "64x64"), ("65536x1", "192x128"), ("65x64", "64x64")],
)
def test_the_nearest_size_is_of_the_nearest_shape(exported: Any, wanted: str, nearest: str) -> None:
    folder = exported("t2i_16x_swiglu").folder
    model = Catalog(ServeSettings(bundles=(folder,), memory=10**10)).default
    with pytest.raises(ApiError, match=f"makes auto, 192x128, 64x64; the nearest is {nearest}"):
        model.size(wanted)
    obliging = Catalog(ServeSettings(bundles=(folder,), memory=10**10, nearest_size=True)).default
    assert str(obliging.size(wanted)) == nearest
    with pytest.raises(ApiError, match="size is 'large'"):
        obliging.size("large")


@pytest.mark.parametrize("wrapped", ["\n", "\r\n", " "])
def test_base64_in_lines_is_taken(server: Server, reference: Pipeline, wrapped: str) -> None:
    (seven,) = reference.generate(Request(classes=["7"], seed=4, steps=1))
    file = io.BytesIO()
    seven.to_pil().save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    lines = wrapped.join(text[i : i + 76] for i in range(0, len(text), 76)) + wrapped
    whole = server.http.post("/v1/tokens", json={"image": text}).json()
    assert server.http.post("/v1/tokens", json={"image": lines}).json() == whole
    assert server.http.post("/v1/tokens", json={"image": f"data:image/png;base64,{lines}"}).json() == whole
