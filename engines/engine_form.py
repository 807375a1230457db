"""How an engine holds its weights: on the GPU and for good, unless asked otherwise.

https://docs.nvidia.com/deeplearning/tensorrt/latest: ``BuilderFlag``, weight streaming and refitting.
"""

from dataclasses import dataclass

from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.record import REFITTABLE, WEIGHT_STREAMING
from bitdance_edge.runtime.errors import BuildError


@dataclass(frozen=True)
class EngineForm:
    """What is asked of an engine's weights.

    Attributes:
        streamed: they lie in the host's memory, and on the GPU as far as there is room. Such an engine allocates while
            it runs: the library refuses it together with REQUIRE_USER_ALLOCATION, without which no launch can be
            captured.
        refittable: each can be replaced in the finished engine (``IRefitter``).
    """

    streamed: bool = False
    refittable: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the builder's flags."""
        streamed = ("WEIGHT_STREAMING",) if self.streamed else ("REQUIRE_USER_ALLOCATION",)
        # REFIT and REFIT_IDENTICAL fail in TensorRT-RTX 1.7.1 on a machine without a GPU.
        return (*streamed, *(("REFIT_INDIVIDUAL",) if self.refittable else ()))

    @property
    def options(self) -> dict[str, bool]:
        """What a record says of it beside the defaults."""
        asked = {WEIGHT_STREAMING: self.streamed, REFITTABLE: self.refittable}
        return {name: True for name, wanted in asked.items() if wanted}

    def require(self, library: Library) -> None:
        """Raise BuildError where the library has no flag for what is asked."""
        wanted = {"WEIGHT_STREAMING": ("--stream-weights", self.streamed)}
        wanted["REFIT_INDIVIDUAL"] = ("--refittable", self.refittable)
        for flag, (option, asked) in wanted.items():
            if asked and library.builder_flag(flag) is None:
                raise BuildError(
                    f"{library.name} {library.version} has no BuilderFlag.{flag}, which {option} needs: omit it"
                )
