"""The runtime is lean: what it imports, and what it says where no backend is installed."""

import subprocess
import sys

from bitdance_edge.runtime import Bundle

HEAVY = {"torch", "onnx", "onnxscript", "transformers", "scipy", "safetensors", "sympy", "sklearn"}


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import bitdance_edge.runtime, bitdance_edge.cli"]
    trace = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in trace.splitlines() if "|" in line}
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_generating_loads_nothing_heavy(bundle: Bundle) -> None:
    script = (
        "import sys\nfrom bitdance_edge.runtime import Pipeline, Request\n"
        f"Pipeline.open({str(bundle.folder)!r}).generate(Request(classes=[1], steps=1))\n"
        f"assert not {HEAVY!r} & set(sys.modules), set(sys.modules)\nassert 'onnxruntime' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_a_backend_the_error_names_the_extra(bundle: Bundle) -> None:
    script = (
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "from bitdance_edge.runtime import Pipeline, BackendError\n"
        f"try:\n    Pipeline.open({str(bundle.folder)!r})\nexcept BackendError as error:\n    print(error)"
    )
    message = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert "pip install" in message and "[cpu]'" in message
