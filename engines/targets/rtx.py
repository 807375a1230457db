"""``rtx``: TensorRT-RTX engines, built on any machine, with or without a GPU.

``rtx`` is portable over the GPUs that the library builds for by default; ``rtx:8.9`` and ``rtx:12.0,8.9`` are for these
compute capabilities only.
"""

from bitdance_edge.engines.gpus import DEFAULT_GPUS, GPUS
from bitdance_edge.engines.targets.tensorrt import TensorRTTarget
from bitdance_edge.runtime.errors import BuildError


def rtx_target(capabilities: str) -> TensorRTTarget:
    """The target of ``rtx`` or ``rtx:<capabilities>``.

    Raises:
        BuildError: a GPU that the library does not build for.
    """
    if not capabilities:
        return TensorRTTarget("rtx", "tensorrt_rtx", (), DEFAULT_GPUS)
    wanted = tuple(part.strip() for part in capabilities.split(","))
    if unknown := [part for part in wanted if part not in GPUS]:
        known = ", ".join(f"{capability} ({gpus})" for capability, gpus in GPUS.items())
        raise BuildError(
            f"target 'rtx:{capabilities}' names compute capability {', '.join(map(repr, unknown))}; TensorRT-RTX "
            f"builds for {known}; for another GPU build on its machine with: --target trt:current"
        )
    named = tuple(sorted(set(wanted), key=lambda text: tuple(map(int, text.split(".")))))
    return TensorRTTarget(f"rtx:{','.join(named)}", "tensorrt_rtx", named, named)
