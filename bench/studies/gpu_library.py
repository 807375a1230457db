"""Libraries for a GPU machine without a network, small enough to travel: ONNX Runtime for CUDA, TensorRT-RTX.

    python gpu_library.py onnxruntime OUT --wheel onnxruntime_gpu-1.31.1-cp312-....whl   # needs zstandard, pyelftools
    python gpu_library.py rtx OUT --python python3.12     # that interpreter needs pip

Each takes minutes of xz. The CUDA provider of onnxruntime-gpu has kernels for six architectures. Those of one are kept,
without mixtures of experts and mixed-input products, which BitDance does not use: 40 MB in place of 256. Dropped code
is zeroed in place and its entry gets an architecture that no GPU asks for, so that every offset in the library stays.
"""

import argparse
import lzma
import re
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ARCHIVE = "library.tar.xz"
FILTERS = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 28},
]
FATBIN_MAGIC = 0xBA55ED50  # of the fat binaries in the section .nv_fatbin
NO_ARCHITECTURE = 75  # of an entry that is never chosen on a newer GPU
UNUSED = (b"MmaArrayMixedInput", b"MoeFC", b"moe_gemv", b"fpA_intB", b"onnxruntime3llm")
NOT_NEEDED = re.compile(
    r"[^/]+/(capi/libonnxruntime\.so|capi/libonnxruntime_providers_tensorrt\.so|"
    r"(transformers|tools|quantization|datasets|backend)/)"
)
RTX_PACKAGES = ("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu13_libs", "tensorrt_rtx_cu13_bindings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    for name in ("onnxruntime", "rtx"):
        tasks.add_parser(name).add_argument("folder", type=Path)
    tasks.choices["onnxruntime"].add_argument("--wheel", type=Path, required=True)
    tasks.choices["onnxruntime"].add_argument("--architecture", type=int, default=90, help="of the GPU (default 90)")
    tasks.choices["rtx"].add_argument("--python", default="python3.12")
    tasks.choices["rtx"].add_argument("--version", default="1.7.1.116")
    args = parser.parse_args()
    site = args.folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    if args.task == "onnxruntime":
        unpack_wheel(args.wheel, site)
        keep_architecture(site / "onnxruntime/capi/libonnxruntime_providers_cuda.so", args.architecture)
    else:
        pip = [args.python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(site)]
        subprocess.run([*pip, *(f"{name}=={args.version}" for name in RTX_PACKAGES)], check=True)
    pack(site, args.folder / ARCHIVE)


def unpack_wheel(path: Path, site: Path) -> None:
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            if not NOT_NEEDED.match(name):
                wheel.extract(name, site)


def keep_architecture(library: Path, architecture: int) -> None:
    """Zero the code of all others in a library, and the kernels that are not used.

    Raises:
        SystemExit: it has no code for this one.
    """
    import zstandard  # type: ignore[import-not-found]
    from elftools.elf.elffile import ELFFile  # type: ignore[import-not-found]

    with library.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".nv_fatbin")
        offset, size = section["sh_offset"], section["sh_size"]
    data = bytearray(library.read_bytes())
    held, kept = bytes(data[offset : offset + size]), 0
    for entry, header, payload, made_for in code_entries(held):
        code = held[entry + header : entry + header + payload]
        if made_for == architecture:
            with suppress(zstandard.ZstdError):  # of code that is not compressed
                code = zstandard.ZstdDecompressor().decompressobj().decompress(code)
            names = b" ".join(re.findall(rb"\.text\.(_Z\w+)", code))
            if not any(word in names for word in UNUSED):
                kept += payload
                continue
            struct.pack_into("<I", data, offset + entry + 28, NO_ARCHITECTURE)
        start = offset + entry + header
        data[start : start + payload] = bytes(payload)
    if not kept:
        raise SystemExit(f"{library} has no code for sm_{architecture}")
    library.write_bytes(data)
    print(f"{library.name}: {kept / 1e6:.1f} MB of code for sm_{architecture} kept of {size / 1e6:.1f} MB")


def code_entries(section: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(offset, bytes of its header, bytes of its code, architecture) of each entry of the fat binaries."""
    at = 0
    while at < len(section) - 16:
        if struct.unpack_from("<I", section, at)[0] != FATBIN_MAGIC:
            at += 8
            continue
        _, _, header, size = struct.unpack_from("<IHHQ", section, at)
        entry, end = at + header, at + header + size
        while entry < end:
            _, _, length, payload = struct.unpack_from("<HHIQ", section, entry)
            yield entry, length, payload, struct.unpack_from("<I", section, entry + 28)[0]
            entry += length + payload
        at = (end + 7) // 8 * 8


def pack(site: Path, archive: Path) -> None:
    with lzma.open(archive, "wb", filters=FILTERS) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for part in sorted(site.iterdir()):
            tar.add(part, part.name)
    shutil.rmtree(site)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
