"""Which element types and operators which GPU and library can take; what it cannot is refused before the build."""

from bitdance_edge.engines.gpus import DEFAULT_GPUS, GPUS
from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.errors import BuildError
from bitdance_edge.runtime.values import quoted

# Element type -> the first compute capability that has it. fp8 and fp32 as the builder itself says when it refuses
# ("HW-specific datatypes: fp8_e4m3", "FP32 GEMM is not supported"); bf16 and fp4 as the support matrices have it.
FIRST_CAPABILITY = {"fp32": (8, 0), "bf16": (8, 0), "fp8": (8, 9), "fp4": (12, 0)}
NEWER_OPERATORS = frozenset({"TensorScatter", "Attention", "RotaryEmbedding"})  # of opset 24


def lacking_support(
    facts: GraphFacts, gpus: tuple[str, ...], library: Library, bundle: Bundle, *, all_of_them: bool
) -> str | None:
    """Why a stage cannot be built for GPUs of these compute capabilities, with the command that would work.

    Args:
        all_of_them: the engine must run on each; else those that lack something are omitted.
    """
    unknown = NEWER_OPERATORS & set(facts.operators.values())
    if unknown and not library.updates_cache_in_place:
        return (
            f"{library.name} {library.version} does not know {', '.join(sorted(unknown))} (TensorRT does from 10.15): "
            f"export for it with: bitdance-edge export CHECKPOINT -o {bundle.folder} --opset 20 --force"
        )
    for kind, lacking in _lacking(facts.types, gpus).items():
        others = tuple(gpu for gpu in gpus if gpu not in lacking)
        if not others or all_of_them:
            needed = ".".join(map(str, FIRST_CAPABILITY[kind]))
            return f"{kind} needs compute capability {needed}, not {', '.join(lacking)}: {_way(kind, others, bundle)}"
    return None


def require_types(types: frozenset[str], target: str, gpus: tuple[str, ...], *, all_of_them: bool) -> None:
    """Refuse element types that no GPU of a target has, or not all of those that it names.

    Raises:
        BuildError: names the type, the GPUs, and a target that works.
    """
    for kind, lacking in _lacking(types, gpus).items():
        if all_of_them or len(lacking) == len(gpus):
            first = FIRST_CAPABILITY[kind]
            fits = ",".join(gpu for gpu in GPUS if tuple(map(int, gpu.split("."))) >= first)
            raise BuildError(
                f"target {target} has GPUs without {kind}: compute capability {', '.join(lacking)}; choose "
                f"another precision, or GPUs that have it: --target rtx:{fits}"
            )


def able(facts: GraphFacts, gpus: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs that have every element type of a graph."""
    lacking = {gpu for found in _lacking(facts.types, gpus).values() for gpu in found}
    return tuple(gpu for gpu in gpus if gpu not in lacking)


def restriction(facts: GraphFacts, gpus: tuple[str, ...]) -> str | None:
    """The GPUs of the default target on which an engine of these element types will not run."""
    kept = able(facts, gpus)
    lacking = [gpu for gpu in gpus if gpu not in kept]
    return f"not for compute capability {', '.join(lacking)}" if lacking else None


def _lacking(types: frozenset[str], gpus: tuple[str, ...]) -> dict[str, list[str]]:
    """Element type -> the GPUs that do not have it."""
    lacking = {
        kind: [gpu for gpu in gpus if tuple(map(int, gpu.split("."))) < first]
        for kind, first in FIRST_CAPABILITY.items()
        if kind in types
    }
    return {kind: gpus for kind, gpus in lacking.items() if gpus}


def _way(kind: str, others: tuple[str, ...], bundle: Bundle) -> str:
    if others:
        return f"build for the others: bitdance-edge build {quoted(bundle.folder)} --target rtx:{','.join(others)}"
    if kind in ("fp8", "fp4"):
        first = FIRST_CAPABILITY[kind]
        fits = ",".join(gpu for gpu in DEFAULT_GPUS if tuple(map(int, gpu.split("."))) >= first)
        return f"build for GPUs that have it: bitdance-edge build {quoted(bundle.folder)} --target rtx:{fits}"
    return f"export in fp16: bitdance-edge export CHECKPOINT -o {bundle.folder} --dtype fp16 --force"
