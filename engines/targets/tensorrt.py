"""What an engine is built for: a library and the GPUs it is to run on, by name.

``rtx`` is portable over the GPUs that TensorRT-RTX builds for by default, ``rtx:8.9`` and ``rtx:12.0,8.9`` are for
these compute capabilities only, ``trt:current`` is full TensorRT for the GPU of this machine.
"""

from dataclasses import dataclass

from bitdance_edge.runtime.errors import EngineError

# Compute capability -> GPUs, as TensorRT-RTX names its targets (support matrix of TensorRT-RTX 1.7).
GPUS = {
    "7.5": "RTX 20, T4",
    "8.0": "A100, A30",
    "8.6": "RTX 30, A10, A40",
    "8.9": "RTX 40, L4, L40",
    "12.0": "RTX 50, RTX PRO",
    "12.1": "DGX Spark",
}
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
RTX_DEFAULT = ("8.0", "8.6", "8.9", "12.0")
EXAMPLES = "rtx, rtx:8.9, rtx:12.0,8.9, trt:current or cpu"


def ordered(capabilities: tuple[str, ...]) -> tuple[str, ...]:
    """Compute capabilities by number, each once."""
    return tuple(sorted(set(capabilities), key=lambda text: tuple(map(int, text.split(".")))))


@dataclass(frozen=True)
class Target:
    library: str  # the Python module: "tensorrt_rtx" or "tensorrt"
    capabilities: tuple[str, ...]  # named in the target; none for the library's default and for this machine's GPU

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read a target by name.

        Raises:
            EngineError: no such library, or a GPU that it does not build for.
        """
        library, _, rest = text.partition(":")
        if library == "trt" and rest == "current":
            return cls("tensorrt", ())
        if text == "rtx":
            return cls("tensorrt_rtx", ())
        if library != "rtx":
            raise EngineError(f"target is {text!r}; it must be one of {EXAMPLES}")
        wanted = tuple(part.strip() for part in rest.split(","))
        if unknown := [part for part in wanted if part not in GPUS]:
            known = ", ".join(f"{capability} ({gpus})" for capability, gpus in GPUS.items())
            raise EngineError(
                f"target {text!r} names compute capability {', '.join(map(repr, unknown))}; TensorRT-RTX builds for "
                f"{known}; for another GPU build on its machine with: --target trt:current"
            )
        return cls("tensorrt_rtx", ordered(wanted))

    @property
    def name(self) -> str:
        if self.library == "tensorrt":
            return "trt:current"
        return f"rtx:{','.join(self.capabilities)}" if self.capabilities else "rtx"

    @property
    def folder(self) -> str:
        """The name as part of a path on any system."""
        return self.name.replace(":", "-").replace(",", "-")

    @property
    def runs_on(self) -> tuple[str, ...]:
        """The compute capabilities that are known before the build; none where it is the GPU of this machine."""
        return () if self.library == "tensorrt" else self.capabilities or RTX_DEFAULT
