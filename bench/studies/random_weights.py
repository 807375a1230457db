"""Write random weights into a bundle that has come without its weights: graphs are kilobytes, weights gigabytes.

    python bench/studies/random_weights.py strip B-16x          # removes the files of weights, and builds
    python bench/studies/random_weights.py fill B-16x           # on the other machine: weights, and their hashes

Times do not depend on the values of weights. Images made with these are noise.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from bitdance_edge.runtime.bundle.manifest import MANIFEST

SPREAD = 0.02
CHUNK = 1 << 24  # values made at once


def strip(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    shutil.rmtree(folder / "targets", ignore_errors=True)
    for stage in manifest["stages"].values():
        for file in stage["weights"]:
            (folder / file["path"]).unlink(missing_ok=True)


def fill(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    rng, written = np.random.default_rng(0), {}  # stages may share a file
    for stage in manifest["stages"].values():
        for file in stage["weights"]:
            path = folder / file["path"]
            if path not in written:
                path.parent.mkdir(parents=True, exist_ok=True)
                written[path] = write_weights(path, file["bytes"], stage["precision"], rng)
                print(f"{path}: {file['bytes'] / 1e6:.1f} MB", flush=True)
            file["sha256"] = written[path]
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def write_weights(path: Path, size: int, precision: str, rng: np.random.Generator) -> str:
    """Write ``size`` bytes of normal values in a stage's element type; returns their SHA-256."""
    digest, left = hashlib.sha256(), size
    with path.open("wb") as file:
        while left:
            values = rng.standard_normal(min(CHUNK, left // 2 + 1), np.float32) * np.float32(SPREAD)
            raw = encoded(values, precision)[:left]
            file.write(raw)
            digest.update(raw)
            left -= len(raw)
    return digest.hexdigest()


def encoded(values: np.ndarray, precision: str) -> bytes:
    if precision == "fp32":
        return values.tobytes()
    if precision == "bf16":  # the upper half of a float32
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["strip", "fill"])
    parser.add_argument("bundle", type=Path)
    args = parser.parse_args()
    {"strip": strip, "fill": fill}[args.task](args.bundle)


if __name__ == "__main__":
    main()
