"""What a manifest says about a bundle: its model, stages, tensors, files, cache and sampling."""

from collections.abc import Mapping
from dataclasses import dataclass

from bitdance_edge.runtime.bundle.dtypes import tensor_bytes
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.values import shown


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a stage.

    A dimension is a number, the name of one that varies (R rows, T tokens, B images or draws, N times, PH and PW
    patches down and across an image), or a multiple of such a name: ``16*PH``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with its named dimensions filled in."""
        return tuple(dim if isinstance(dim, int) else dim_size(dim, sizes) for dim in self.shape)

    def bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes of the tensor with its named dimensions filled in."""
        return tensor_bytes(self.sized(sizes), self.dtype)


def dim_factor(dim: str) -> tuple[int, str]:
    """``16*PH`` to (16, "PH"); a plain name has factor 1."""
    factor, _, name = dim.rpartition("*")
    return int(factor or 1), name


def dim_size(dim: str, sizes: Mapping[str, int]) -> int:
    factor, name = dim_factor(dim)
    return factor * sizes[name]


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    path: str  # relative to the bundle, with forward slashes
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One exported graph, and its difference from PyTorch at export."""

    graph: FileSpec
    weights: tuple[FileSpec, ...]
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_error: float | None  # None: the machine that exported it had too little memory to run it
    tolerance: float
    weight_bytes: int  # of the weights that this stage uses, whichever file they are in
    activation_bytes: int  # live at the same time inside the graph, for one image (two rows)

    @property
    def files(self) -> tuple[FileSpec, ...]:
        return (self.graph, *self.weights)

    @property
    def bytes(self) -> int:
        """Bytes of the graph and its weights; a file of weights may serve several stages and be larger."""
        return self.graph.bytes + self.weight_bytes


CLASS_CONDITIONAL, TEXT_TO_IMAGE = KINDS = ("class-conditional", "text-to-image")


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """One size of image: in pixels, in tokens (``grid``) and in patches."""

    width: int
    height: int
    grid_width: int
    grid_height: int
    tokens: int
    patches: int
    patches_across: int
    patches_down: int

    @property
    def pixels(self) -> Size:
        return Size(width=self.width, height=self.height)

    def __str__(self) -> str:
        return str(self.pixels)

    @property
    def dims(self) -> dict[str, int]:
        """The named dimensions of decoder and encoder that this size determines."""
        return {"PH": self.patches_down, "PW": self.patches_across}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What the loop and a request need to know."""

    kind: str  # one of KINDS
    tokens_per_step: int
    bits: int
    pixels_per_token: int
    patch_side: int  # square that the token order is made of; 1 is raster order
    sizes: tuple[Size, ...]  # of images in pixels; the first is the default
    prompt_tokens: int  # of the longest prompt, with the queries of the first patch
    num_classes: int  # 0 for text-to-image
    class_names: tuple[str, ...]
    decoder_noise: bool

    @property
    def default_size(self) -> ImageSize:
        return self.size(self.sizes[0])

    @property
    def largest_size(self) -> ImageSize:
        """The size with the most tokens, which the cache is allocated for."""
        return self.size(max(self.sizes, key=lambda size: size.area))

    def size(self, size: Size | str | None = None) -> ImageSize:
        """Look up one of this model's sizes, given as ``Size`` or "WIDTHxHEIGHT"; None: the first.

        Raises:
            RequestError: the text is not a size, or the model does not make images of this one.
        """
        size = self.sizes[0] if size is None else Size.parse(size) if isinstance(size, str) else size
        if not isinstance(size, Size):  # a pair would not say which of its numbers is the width
            raise RequestError(f"size is {shown(size)}; give Size(width=..., height=...) or 'WIDTHxHEIGHT'")
        if size not in self.sizes:
            known = ", ".join(map(str, self.sizes))
            raise RequestError(f"size is {shown(size, str)}; this bundle makes {known} only (WIDTHxHEIGHT)")
        down, across = size.height // self.pixels_per_token, size.width // self.pixels_per_token
        return ImageSize(
            width=size.width,
            height=size.height,
            grid_width=across,
            grid_height=down,
            tokens=down * across,
            patches=down * across // self.tokens_per_step,
            patches_across=across // self.patch_side,
            patches_down=down // self.patch_side,
        )


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """How a prompt becomes token ids."""

    tokenizer: FileSpec
    conditional: str  # chat template around {prompt}
    unconditional: str
    suffixes: Mapping[str, tuple[int, ...]]  # WIDTHxHEIGHT -> ids that follow the text: start, sides, queries
    max_prompt: int  # tokens of the longest prompt, template included
    example: str  # a prompt of words that the model knows, for hints and first trials


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Keys and values ``[R, heads, length, head_dim]`` of every layer."""

    layers: int
    heads: int
    length: int
    head_dim: int
    dtype: str

    def bytes(self, rows: int) -> int:
        """Bytes of the keys and values of ``rows`` rows."""
        return 2 * self.layers * tensor_bytes((rows, self.heads, self.length, self.head_dim), self.dtype)


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    steps: int
    guidance: float
    guidance_schedule: str
    time_shift: float
    sampler: str = "sde"
