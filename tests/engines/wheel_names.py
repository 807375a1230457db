"""The names that a TensorRT wheel's Python module holds, read from its file: the libraries it needs are not installed.

pip download --no-deps tensorrt-cu13-bindings==11.4.0.106
python tests/engines/wheel_names.py tensorrt_cu13_bindings-11.4.0.106-*.whl > tests/engines/names-11.4.txt
"""

import re
import sys
import zipfile


def wheel_names(wheel: str) -> list[str]:
    """Every C string of the module that is an identifier, among them all classes, methods and enumerators."""
    with zipfile.ZipFile(wheel) as archive:
        module = archive.read("tensorrt_bindings/tensorrt.so")
    found = re.findall(rb"(?<=\0)[A-Za-z_][A-Za-z0-9_]{1,59}(?=\0)", module)
    return sorted({name.decode() for name in found if not name.startswith((b"_Z", b"GCC"))})


if __name__ == "__main__":
    sys.stdout.write("\n".join(wheel_names(sys.argv[1])) + "\n")
