"""Make what travels to a GPU machine without a network: two folders of at most 64 MiB, each with a script to run.

    python bench/studies/gpu_parts.py OUT --onnxruntime LIBRARY --rtx LIBRARY --wheels WHEELS \\
        --bundles d4x-fp32 d4x d16x --models B-16x=B-16x 14B-64x=14B-64x

``LIBRARY`` are folders made by ``gpu_library.py``, ``WHEELS`` one with PyCUDA and what it needs. ``--bundles`` travel
with their weights, ``--models`` without (``random_weights.py``). On the machine, in this order, with Python 3.12,
PyTorch, onnx and CUDA 13:

    bash 1/run.sh speed           # 4 minutes: provider, tokens against the CPU's, B-16x at batch 1 beside PyTorch
    bash 2/run.sh                 # 2 minutes: do TensorRT-RTX engines made elsewhere load, and those built there
    bash 1/run.sh batches         # 3 minutes: B-16x at 8 and 64
    bash 1/run.sh large           # 3 minutes: eight patches of 14B-64x, whose weights are written to memory

Every row is printed as soon as it is known, and kept in ``$OUT`` (default: where the part is unpacked, in the home
folder). Part 2 compares tokens and times where part 1 has left its bundles there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from random_weights import large_files

LIMIT = 64 << 20  # bytes of a part
ROOT = Path(__file__).parents[2]
ROOMS = ("model", "training", "export", "calibration", "bench", "engines", "runtime", "serve")
SETUP = """#!/usr/bin/env bash
set -u
here=$(cd "$(dirname "$0")" && pwd); work=$HOME/PART; site=$work/site; out=${OUT:-$work}; mkdir -p "$work"
unpacked() { python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')" "$@"; }
[ -d "$work/studies" ] || unpacked "$here/files.tar.xz" "$work" || exit 1
[ -d "$site" ] || unpacked "$here/library.tar.xz" "$site" || exit 1
cd "$work"
export PYTHONPATH="$site:$HOME/part-1/site:$work/packages:$HOME/part-1/packages"
export PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY
said() { echo "== $* ($SECONDS s)"; }
bitdance() { python3 -m bitdance_edge "$@" 2>&1 | tail -n 8; }
check() { said "$@"; python3 studies/gpu_check.py --json "$out/$1.json" "${@:2}"; }
"""
PART_1 = """nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
made() {  # a model's bundle with random weights, built for CUDA
  [ -d "$2/$1" ] || { cp -r "graphs/$1" "$2"; said weights; python3 studies/random_weights.py fill "$2/$1"; }
  said build; bitdance build "$2/$1" --target cuda "${@:3}"
}
ort="--backends onnxruntime-cuda"
case "${1:-speed}" in
  speed)
    for bundle in BUNDLES; do bitdance build "$bundle" --target cuda; done
    check tokens $ort --tokens BUNDLES --captures patch stages none
    made B-16x .
    check speed $ort --speed B-16x=B-16x --batches 1 --captures patch stages --windows 1,8,16 --kernels 30 ;;
  batches) made B-16x .; check batches $ort --speed B-16x=B-16x --batches 8,64 --kernels 20 ;;
  large)  # the backbone is left as it is: its build would write 26 GB again
    made 14B-64x /dev/shm --stages head,decoder
    check large $ort --speed 14B-64x=/dev/shm/14B-64x --patches 8 --kernels 20 ;;
  *) echo "speed, batches or large, not $1"; exit 2 ;;
esac
said end
"""
PART_2 = """python3 studies/rtx_on_gpu.py run --folder engines | tee "$out/rtx.json"
said built here
there=$HOME/part-1; bundle=$there/BUNDLE
[ -d "$bundle" ] && python3 studies/rtx_built_here.py "$bundle" --folder engines --json "$out/rtx_built_here.json"
if grep -q '"outcome": "runs' "$out/rtx.json" && [ -d "$bundle" ]; then
  bitdance build "$bundle" --target rtx
  check rtx_tokens --backends tensorrt_rtx --tokens "$bundle"
  [ ! -d "$there/B-16x" ] || bitdance build "$there/B-16x" --target rtx
  [ ! -d "$there/B-16x" ] || check rtx_speed --backends tensorrt_rtx --speed B-16x="$there/B-16x" --kernels 30
fi
said end
"""


def script(body: str, **names: str) -> str:
    """A part's script, with the names in capitals filled in."""
    text = SETUP + body
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--onnxruntime", type=Path, required=True, help="folder made by gpu_library.py")
    parser.add_argument("--rtx", type=Path, help="folder made by gpu_library.py; without it there is no part 2")
    parser.add_argument("--bundles", type=Path, nargs="+", required=True, help="whose tokens are compared")
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL=BUNDLE", help="for speed: B-16x, 14B-64x")
    parser.add_argument("--wheels", type=Path, help="folder with PyCUDA and what it needs, for TensorRT-RTX")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = code(Path(folder) / "1")
        for bundle in args.bundles:
            shutil.copytree(bundle, first / "bundles" / bundle.name, ignore=shutil.ignore_patterns("targets"))
        for model, _, bundle in (pair.partition("=") for pair in args.models):
            copy_graphs(Path(bundle), first / "graphs" / model)
        if args.wheels is not None:
            for wheel in args.wheels.glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(first / "packages")
        names = " ".join(f"bundles/{bundle.name}" for bundle in args.bundles)
        pack(args.out / "1", first, args.onnxruntime, script(PART_1, PART="part-1", BUNDLES=names))
        if args.rtx is not None:
            second, bundle = code(Path(folder) / "2"), args.bundles[-1]
            prepare = [str(Path(__file__).with_name("rtx_on_gpu.py")), "prepare", str(bundle)]
            subprocess.run([sys.executable, *prepare, "--folder", str(second / "engines")], check=True)
            keep_head(second / "engines")
            text = script(PART_2, PART="part-2", BUNDLE=f"bundles/{bundle.name}")
            pack(args.out / "2", second, args.rtx, text)


def code(folder: Path) -> Path:
    """A folder with the package and the scripts of ``bench/studies``."""
    unwanted = shutil.ignore_patterns("__pycache__", "results", "studies")
    package = folder / "packages" / "bitdance_edge"
    shutil.copytree(ROOT / "bitdance_edge", package, ignore=unwanted, symlinks=False)
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=unwanted, dirs_exist_ok=True)
    shutil.copytree(ROOT / "bench" / "studies", folder / "studies", ignore=unwanted)
    return folder


def copy_graphs(bundle: Path, folder: Path) -> None:
    """A bundle without its weights, which ``random_weights.py fill`` replaces."""
    large = {Path(path).name for path in large_files(bundle)}
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("targets", *large))


def keep_head(engines: Path) -> None:
    """Leave one engine and its inputs, for which there is room."""
    samples = json.loads((engines / "samples.json").read_text(encoding="utf-8"))
    kept = [sample for sample in samples if sample["name"] == "head-all"]
    (engines / "samples.json").write_text(json.dumps(kept), encoding="utf-8")
    for path in engines.iterdir():
        if path.name not in ("samples.json", "head-all.npz", kept[0]["engine"]):
            path.unlink()


def pack(part: Path, files: Path, library: Path, text: str) -> None:
    """Write a part: its script, the library as it is, and all else compressed.

    Raises:
        SystemExit: it is too large to travel.
    """
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "run.sh").write_text(text, encoding="utf-8")
    shutil.copyfile(library / "library.tar.xz", part / "library.tar.xz")
    with tarfile.open(part / "files.tar.xz", "w:xz", preset=9) as tar:
        for path in sorted(files.iterdir()):
            tar.add(path, path.name)
    size = sum(file.stat().st_size for file in part.iterdir())
    print(f"{part}: {size / 2**20:.1f} MiB")
    if size > LIMIT:
        raise SystemExit(f"{part} is larger than {LIMIT >> 20} MiB: leave out bundles")


if __name__ == "__main__":
    main()
