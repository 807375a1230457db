"""Runs every command that needs PyTorch once, with what is installed: ``make lowest`` calls it in a bare environment.

    python tests/extras_check.py

Works in a temporary folder, on the shipped checkpoints, as small as each command allows.
"""

import importlib.metadata
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
COMMAND = [sys.executable, "-P", "-m", "bitdance_edge"]  # what is installed, not the folder of this checkout
SHOWN = ("numpy", "torch", "onnx", "onnxruntime", "onnxscript", "scipy", "tokenizers", "accelerate")
FEW = "--images 2 --held-out 1 --search-images 1 --test-images 2 --no-sensitivity"
RUNS = (
    "export {checkpoints}/digits-4x -o digits-4x",
    "build digits-4x --target cpu",
    "generate digits-4x --classes 3 --seed 1 --out three.png",
    "inspect digits-4x --json",
    "compare digits-4x --checkpoint {checkpoints}/digits-4x --stages head,decoder",
    f"calibrate digits-4x --precision int8 -o digits-4x-int8 {FEW}",
    "generate digits-4x-int8 --classes 3 --seed 1 --out three-int8.png",
    "bench digits-4x --checkpoint {checkpoints}/digits-4x --rounds 1 --patches 2 --threads 1 -o bench",
    "export {checkpoints}/shapes-16x -o shapes-16x --dtype fp16",
    "generate shapes-16x --prompt 'a red circle above a blue square' --seed 1 --out circle.png",
    "train digits-tokenizer --steps 2 --set warmup_steps=0 --out trained-tokenizer",
    "train digits-4x --steps 2 --set warmup_steps=0 --tokenizer trained-tokenizer --out trained",
    "export trained -o trained-bundle",
)


def main() -> None:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in SHOWN]
    sys.stdout.write(f"Python {sys.version.split()[0]}, {', '.join(versions)}\n")
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            started = time.monotonic()
            arguments = [word.format(checkpoints=CHECKPOINTS) for word in shlex.split(run)]
            done = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8")
            if done.returncode:
                raise SystemExit(f"{run}\n{done.stdout}{done.stderr}")
            sys.stdout.write(f"ok  {run}  {time.monotonic() - started:.0f} s\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
