"""The names that PyCUDA's driver module exports, read from its source: it cannot be compiled without a CUDA toolkit.

pip download --no-deps --no-binary pycuda pycuda==2026.1
python tests/runtime/pycuda_names.py pycuda-2026.1.tar.gz > tests/runtime/names-pycuda-2026.1.txt
"""

import re
import sys
import tarfile

# Boost.Python's ways to export, and the macros that PyCUDA has for them.
EXPORTS = (
    r'(?:\.def|py::def|\.value|\.add_property|py::enum_<\w+>)\s*\(\s*"(\w+)"',
    r'py::class_<[^;]*?>\s*(?:\w+\s*)?\(\s*"(\w+)"',
    r'py::init[^;]*?"(\w+)"',
    r"DEF_SIMPLE_(?:METHOD|FUNCTION)\w*\(\s*(\w+)",
    r"DECLARE_EXC\((\w+)",
)


def pycuda_names(archive: str) -> list[str]:
    with tarfile.open(archive) as sources:
        member = next(item for item in sources if item.name.endswith("src/wrapper/wrap_cudadrv.cpp"))
        file = sources.extractfile(member)
        assert file is not None
        text = file.read().decode()
    return sorted({name for pattern in EXPORTS for name in re.findall(pattern, text)})


if __name__ == "__main__":
    sys.stdout.write("\n".join(pycuda_names(sys.argv[1])) + "\n")
