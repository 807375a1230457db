"""Make what travels to a GPU machine without a network: two folders of at most 64 MiB, each with a script to run.

    python bench/studies/gpu_parts.py OUT --onnxruntime LIBRARY --rtx LIBRARY --bundles d4x-fp32 d4x d16x --model B-16x

``LIBRARY`` are folders made by ``gpu_library.py``. ``--bundles`` travel with their weights, ``--model`` without
(``random_weights.py``). On the machine, in this order, with Python 3.12, PyTorch, onnx and CUDA 13:

    bash 1/run.sh speed           # 4 minutes: provider, tokens against the CPU's, B-16x at batch 1 beside PyTorch
    bash 2/run.sh                 # 2 minutes: do TensorRT-RTX engines made elsewhere load, and those built there
    bash 1/run.sh batches         # 3 minutes: B-16x at 8 and 64

Every row is printed as soon as it is known, and kept in ``$OUT`` (default: the part's folder).
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

LIMIT = 64 << 20  # bytes of a part
ROOT = Path(__file__).parents[2]
ROOMS = ("model", "training", "export", "calibration", "bench", "engines", "runtime", "serve")
SETUP = """#!/usr/bin/env bash
set -u
here=$(cd "$(dirname "$0")" && pwd); cd "$here"; out=${OUT:-$here}; site=$HOME/SITE
[ -d "$site" ] || python3 studies/gpu_library.py unpack library "$site" || exit 1
export PYTHONPATH="$site:$here/packages" PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY
"""
PART_1 = """nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
model=$HOME/MODEL
[ -d "$model" ] || { cp -r bundles/MODEL "$model"; python3 studies/random_weights.py fill "$model"; }
for bundle in BUNDLES "$model"; do python3 -m bitdance_edge build "$bundle" --target cuda | tail -n 8; done
check() { python3 studies/gpu_check.py --backends onnxruntime-cuda --json "$out/$1.json" "${@:2}"; }
case "${1:-speed}" in
  speed) check speed --tokens BUNDLES --speed NAME="$model" --batches 1 --captures patch stages ;;
  batches) check batches --speed NAME="$model" --batches 8,64 ;;
  *) echo "speed or batches, not $1"; exit 2 ;;
esac
"""
PART_2 = """python3 studies/rtx_on_gpu.py run --folder engines | tee "$out/rtx.json"
python3 studies/rtx_built_here.py BUNDLES --folder engines --json "$out/rtx_built_here.json"
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
    parser.add_argument("--model", type=Path, required=True, help="bundle of a published size, for speed")
    parser.add_argument("--name", default="B-16x", help="of the model's size (default B-16x)")
    args = parser.parse_args()
    first = new_part(args.out / "1", args.onnxruntime)
    for bundle in args.bundles:
        shutil.copytree(bundle, first / "bundles" / bundle.name, ignore=shutil.ignore_patterns("targets"))
    copy_graphs(args.model, first / "bundles" / args.model.name)
    names = " ".join(f"bundles/{bundle.name}" for bundle in args.bundles)
    text = script(PART_1, SITE="onnxruntime-cuda", MODEL=args.model.name, BUNDLES=names, NAME=args.name)
    (first / "run.sh").write_text(text, encoding="utf-8")
    parts = [first]
    if args.rtx is not None:
        second, bundle = new_part(args.out / "2", args.rtx), args.bundles[-1]
        prepare = [str(Path(__file__).with_name("rtx_on_gpu.py")), "prepare", str(bundle)]
        subprocess.run([sys.executable, *prepare, "--folder", str(second / "engines")], check=True)
        shutil.copytree(bundle, second / "bundles" / bundle.name, ignore=shutil.ignore_patterns("targets"))
        text = script(PART_2, SITE="tensorrt-rtx", BUNDLES=f"bundles/{bundle.name}")
        (second / "run.sh").write_text(text, encoding="utf-8")
        parts.append(second)
    for part in parts:
        size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        print(f"{part}: {size / 2**20:.1f} MiB")
        if size > LIMIT:
            raise SystemExit(f"{part} is larger than {LIMIT >> 20} MiB: leave out bundles")


def new_part(folder: Path, library: Path) -> Path:
    """A folder with a library, the package and the scripts of ``bench/studies``."""
    shutil.rmtree(folder, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", "results", "studies")
    package = folder / "packages" / "bitdance_edge"
    shutil.copytree(ROOT / "bitdance_edge", package, ignore=unwanted, symlinks=False)
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=unwanted, dirs_exist_ok=True)
    shutil.copytree(library, folder / "library")
    shutil.copytree(ROOT / "bench" / "studies", folder / "studies", ignore=unwanted)
    return folder


def copy_graphs(bundle: Path, folder: Path) -> None:
    """A bundle without its weights, which ``random_weights.py fill`` replaces."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    weights = {Path(file["path"]).name for stage in manifest["stages"].values() for file in stage["weights"]}
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("targets", *weights))


if __name__ == "__main__":
    main()
