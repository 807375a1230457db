"""The devices that a bundle can be built for, one module each behind one interface."""

from bitdance_edge.engines.targets.cpu import CpuTarget
from bitdance_edge.engines.targets.cuda import CudaTarget
from bitdance_edge.engines.targets.interface import Target
from bitdance_edge.engines.targets.rtx import rtx_target
from bitdance_edge.engines.targets.tensorrt import TensorRTTarget
from bitdance_edge.engines.targets.trt import CURRENT_GPU, trt_target
from bitdance_edge.runtime.errors import BuildError

EXAMPLES = "cpu, cuda, rtx, rtx:8.9, rtx:12.0,8.9 or trt:current"


def parse_target(text: str) -> Target:
    """Read a target by name.

    Raises:
        BuildError: there is none of this name, or it names a GPU that its library does not build for.
    """
    name, _, rest = text.partition(":")
    if text == "cpu":
        return CpuTarget()
    if text == "cuda":
        return CudaTarget()
    if text == CURRENT_GPU:
        return trt_target()
    if name == "rtx" and text != "rtx:":
        return rtx_target(rest)
    raise BuildError(f"target is {text!r}; it must be one of {EXAMPLES}")


def parse_engine_target(text: str) -> TensorRTTarget:
    """Read the name of a target of TensorRT engines.

    Raises:
        BuildError: there is none of this name, or its builds are not engines.
    """
    target = parse_target(text)
    if not isinstance(target, TensorRTTarget):
        raise BuildError(f"target is {text!r}, whose builds are graphs; engines are of rtx, rtx:8.9 or trt:current")
    return target
