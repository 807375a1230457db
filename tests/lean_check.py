"""An installed package without PyTorch makes images from ready bundles: run by ``make lean`` in a bare environment.

    python tests/lean_check.py ARCHIVE.tar...

Each archive is generated from by the command line, by Python and by the server, tokenized again, and compared with what
examples/minimal_runtime.py makes of it, which uses nothing of this package.
"""

import base64
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from ready_server import wait_until_ready

from bitdance_edge import Bundle, Pipeline, Request
from bitdance_edge.runtime import read_settings

COMMAND = [sys.executable, "-P", "-m", "bitdance_edge"]  # what is installed, not the folder of this checkout
EXAMPLES = Path(__file__).parents[1] / "examples"


def main(archives: list[str]) -> None:
    assert archives, __doc__
    assert importlib.util.find_spec("torch") is None, "this environment has PyTorch: it proves nothing"
    completion = subprocess.run([*COMMAND, "--print-completion", "bash"], check=True, capture_output=True, text=True)
    assert "--prompts-file" in completion.stdout
    for archive in archives:
        with tempfile.TemporaryDirectory() as folder:
            check(Path(archive).resolve(), Path(folder))
        sys.stdout.write(f"{archive}: images by the command, by Python and by the minimal runtime are the same\n")


def check(archive: Path, folder: Path) -> None:
    bundle = Bundle.open(archive)
    subject = "0" if bundle.text is None else bundle.text.example
    flag = "--classes" if bundle.text is None else "--prompt"
    made = ["generate", str(archive), flag, subject, "--seed", "1", "--out", "one.png", "--quiet"]
    shown = subprocess.run([*COMMAND, *made], cwd=folder, check=True, capture_output=True, text=True)
    assert shown.stdout.split() == ["one.png"] and not shown.stderr, shown
    tokens = ["tokenize", str(archive), "one.png", "-o", "one.npy"]
    subprocess.run([*COMMAND, *tokens], cwd=folder, check=True, capture_output=True)
    request = Request(classes=[0], seed=1) if bundle.text is None else Request(prompts=[subject], seed=1)
    with Pipeline.open(archive) as pipeline:
        (image,) = pipeline.generate(request)
    assert dict(image.settings) == read_settings(folder / "one.png")
    assert np.load(folder / "one.npy").shape == (1, *image.tokens.shape)
    assert np.array_equal(served(archive, subject), np.asarray(image.pixels))
    assert np.array_equal(minimal(bundle.folder, 0 if bundle.text is None else subject), image.tokens)


def served(archive: Path, subject: str) -> np.ndarray:
    """The pixels of the same image from the server."""
    serve = [*COMMAND, "serve", str(archive), "--port", "0", "--log-level", "error"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        try:
            wait_until_ready(address)
            asked = json.dumps({"prompt": subject, "seed": 1}).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{address}/v1/images/generations", asked, headers)
            with urllib.request.urlopen(request, timeout=300) as answer:
                made = json.load(answer)["data"][0]["b64_json"]
        finally:
            server.terminate()
    with Image.open(io.BytesIO(base64.b64decode(made))) as image:
        return np.asarray(image)


def minimal(folder: Path, subject: int | str) -> np.ndarray:
    """The tokens of the first size with seed 1, by the example."""
    sys.path.insert(0, str(EXAMPLES))
    from minimal_runtime import Bundle as MinimalBundle

    bundle = MinimalBundle(folder)
    width, height = bundle.model["sizes"][0]["width"], bundle.model["sizes"][0]["height"]
    return bundle.generate(*bundle.rows([subject], f"{width}x{height}"), [1], width, height)[0].astype(np.int8)


if __name__ == "__main__":
    main(sys.argv[1:])
