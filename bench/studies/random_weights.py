"""Write random weights into a bundle that has come without its weights: graphs are kilobytes, weights gigabytes.

    python bench/studies/random_weights.py strip B-16x          # removes the files of weights, and builds
    python bench/studies/random_weights.py fill B-16x           # on the other machine: weights, and their hashes

Times depend little on the values of weights: these repeat a block of normal ones. Images made with them are noise.
"""

import argparse
import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bitdance_edge.runtime.bundle.manifest import MANIFEST

SPREAD = 0.02
LARGE = 1 << 22  # bytes: smaller files hold constants, which may be indices
BLOCK = 1 << 24  # values that are drawn once and written again and again


def large_files(folder: Path) -> dict[str, tuple[str, int]]:
    """Path -> (element type, bytes) of a bundle's files of weights; stages may share one."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {
        file["path"]: (stage["precision"], file["bytes"])
        for stage in manifest["stages"].values()
        for file in stage["weights"]
        if file["bytes"] >= LARGE
    }


def strip(folder: Path) -> None:
    shutil.rmtree(folder / "targets", ignore_errors=True)
    for path in large_files(folder):
        (folder / path).unlink(missing_ok=True)


def fill(folder: Path) -> None:
    manifest, files = json.loads((folder / MANIFEST).read_text(encoding="utf-8")), large_files(folder)
    drawn = np.random.default_rng(0).standard_normal(BLOCK, np.float32) * np.float32(SPREAD)
    blocks = {precision: encoded(drawn, precision) for precision, _ in files.values()}
    with ThreadPoolExecutor() as pool:
        written = {
            path: pool.submit(write_weights, folder / path, size, blocks[precision])
            for path, (precision, size) in files.items()
        }
    for stage in manifest["stages"].values():
        for file in stage["weights"]:
            if file["path"] in written:
                file["sha256"] = written[file["path"]].result()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def write_weights(path: Path, size: int, block: bytes) -> str:
    """Write ``size`` bytes of a block, repeated; returns their SHA-256."""
    digest, view, left = hashlib.sha256(), memoryview(block), size
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while left:
            part = view[:left]
            file.write(part)
            digest.update(part)
            left -= len(part)
    print(f"{path}: {size / 1e6:.1f} MB", flush=True)
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
