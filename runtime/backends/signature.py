"""Whether what a library has loaded is what the manifest describes, and whether buffers are large enough for it.

A library reads and writes where it is told to: that an address holds as many bytes as it believes is checked here.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bitdance_edge.runtime.backends.interface import Memory
from bitdance_edge.runtime.bundle.dtypes import tensor_bytes
from bitdance_edge.runtime.bundle.specs import StageSpec, TensorSpec, dim_factor
from bitdance_edge.runtime.errors import BundleError

# Name -> element type as a manifest calls it, and dimensions: numbers where they are fixed, anything else where not
Loaded = Mapping[str, tuple[str, Sequence[object]]]


def require_signature(path: Path, spec: StageSpec, inputs: Loaded, outputs: Loaded) -> None:
    """Compare inputs and outputs of a loaded graph or engine with the manifest's.

    Raises:
        BundleError: a name, an element type or a dimension is another.
    """
    for what, described, loaded in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        if {tensor.name for tensor in described} != loaded.keys():
            names = ", ".join(sorted(loaded))
            raise BundleError(f"{path} has the {what}s {names}, and its bundle says otherwise; copy or export it again")
        for tensor in described:
            dtype, shape = loaded[tensor.name]
            if dtype != tensor.dtype or not _same_shape(tensor.shape, shape):
                raise BundleError(
                    f"{path}: {what} {tensor.name} is {dtype} {_listed(shape)}, its bundle says {tensor.dtype} "
                    f"{_listed(tensor.shape)}; copy or export it again"
                )


def require_memory_for(name: str, spec: StageSpec, buffers: Mapping[str, Memory]) -> None:
    """Check that each buffer has the shape that a stage's tensor can have, and the bytes of that shape.

    Raises:
        BundleError: one does not.
    """
    sizes: dict[str, int] = {}
    for tensor in (*spec.inputs, *spec.outputs):
        buffer = buffers[tensor.name]
        if not _fits(tensor, buffer.shape, sizes) or buffer.nbytes < tensor_bytes(buffer.shape, tensor.dtype):
            raise BundleError(
                f"{name}: {tensor.name} is {tensor.dtype} {_listed(tensor.shape)}, and is given {buffer.nbytes} bytes "
                f"of shape {_listed(buffer.shape)}; the bundle contradicts itself: copy or export it again"
            )


def _same_shape(described: Sequence[int | str], loaded: Sequence[object]) -> bool:
    """Whether the ranks are the same, and the numbers where both have one."""
    if len(described) != len(loaded):
        return False
    pairs = zip(described, loaded, strict=True)
    return all(
        here == there for here, there in pairs if isinstance(here, int) and isinstance(there, int) and there >= 0
    )


def _fits(tensor: TensorSpec, shape: Sequence[int], sizes: dict[str, int]) -> bool:
    """Whether a shape is one of a tensor's; ``sizes`` has the named dimensions so far, and gets these."""
    if len(shape) != len(tensor.shape):
        return False
    for dim, size in zip(tensor.shape, shape, strict=True):
        factor, name = (size, "") if isinstance(dim, int) else dim_factor(dim)
        if isinstance(dim, int):
            if dim != size:
                return False
        elif size % factor or sizes.setdefault(name, size // factor) != size // factor:
            return False
    return True


def _listed(shape: Iterable[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"
