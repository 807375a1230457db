"""Builds the fake CUDA, and puts onnxruntime-gpu beside it: ``python tests/fake_cuda/set_up.py FOLDER``.

Ends with status 1 where something cannot be had, and says what. onnxruntime-gpu goes into a folder of its own, because
it and onnxruntime overwrite each other's files.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = ("nvidia-cuda-runtime==13.5.37", "nvidia-cuda-crt==13.5.37")
# (source, library's name, whether its symbols carry that name as their version)
LIBRARIES = (
    ("cudart", "libcudart.so.13", True),
    ("cublas", "libcublas.so.13", True),
    ("cublasLt", "libcublasLt.so.13", True),
    ("curand", "libcurand.so.10", True),
    ("cudnn", "libcudnn.so.9", False),
    ("driver", "libcuda.so.1", False),
)


def main() -> None:
    target = Path(sys.argv[1]).absolute()
    with (HERE.parents[1] / "pyproject.toml").open("rb") as file:
        (wheel,) = tomllib.load(file)["project"]["optional-dependencies"]["gpu"]
    install((wheel,), target / "site", "the wheel of onnxruntime-gpu")
    install(HEADERS, target / "headers", "CUDA's headers")
    build(target / "headers", target / "lib")


def install(packages: tuple[str, ...], folder: Path, what: str) -> None:
    stamp = folder / "installed.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == " ".join(packages):
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
    if subprocess.run([*command, *packages]).returncode:
        raise SystemExit(f"{what} cannot be installed: {' '.join(packages)}")
    stamp.write_text(" ".join(packages), encoding="utf-8")


def build(headers: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    include = [f"-I{found}" for found in sorted((headers / "nvidia").glob("*/include"))]
    runtime = folder / LIBRARIES[0][1]
    for source, name, versioned in LIBRARIES:
        needs = [] if source == "cudart" else [str(runtime)]
        if versioned:
            script = folder / f"{source}.map"
            script.write_text(f"{name} {{ global: *; }};\n", encoding="utf-8")
            needs.append(f"-Wl,--version-script={script}")
        flags = ["-shared", "-fPIC", "-O1", "-w", *include, f"-Wl,-soname,{name}"]
        try:
            done = subprocess.run(
                [os.environ.get("CC", "gcc"), *flags, "-o", str(folder / name), str(HERE / f"{source}.c"), *needs]
            )
        except FileNotFoundError as error:
            raise SystemExit(f"there is no C compiler: {error.filename}") from None
        if done.returncode:
            raise SystemExit(f"{source}.c does not compile")


if __name__ == "__main__":
    main()
