"""What a manifest says about a bundle: its model, stages, tensors, files, cache and sampling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from bitdance_edge.runtime.bundle.dtypes import TENSOR_DTYPES, tensor_bytes
from bitdance_edge.runtime.bundle.limits import (
    Bytes,
    Count,
    FilePath,
    Items,
    Like,
    Name,
    NotNegative,
    OneOf,
    Quantity,
    Sha256,
    Text,
    Within,
)
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.sampler import GUIDANCE_SCHEDULES, MAX_GUIDANCE, MAX_STEPS, MAX_WINDOW, SAMPLERS
from bitdance_edge.runtime.values import shown, whole

MANIFEST = "bundle.json"
FLOATS = ("float32", "float16", "bfloat16")
DIMS = ("R", "T", "B", "N", "M", "W", "H", "K", "PH", "PW")  # that vary
Dtype = Annotated[str, OneOf(TENSOR_DTYPES)]
Dim = Annotated[str, Like(rf"([1-9]\d{{0,4}}\*)?({'|'.join(DIMS)})", "a name such as R, or 16*PH,")]
Tokens = Annotated[tuple[Annotated[int, Within(0, 2**31 - 1)], ...], Items(1, 65_536)]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a stage.

    A dimension is a number, the name of one that varies (R rows, T tokens, B images or draws, N times, W times
    of a window, H halves of the rows, K rows of a schedule, PH and PW patches down and across an image), or a multiple
    of such a name: ``16*PH``.
    """

    name: Name
    dtype: Dtype
    shape: Annotated[tuple[Count | Dim, ...], Items(0, 8)]

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
    path: FilePath  # relative to the bundle, with forward slashes
    sha256: Sha256
    bytes: Bytes


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One exported graph, and its difference from PyTorch at export."""

    graph: FileSpec
    weights: tuple[FileSpec, ...]
    precision: Annotated[str, Like(r"[a-z]{0,8}(fp|bf|int)\d{1,2}[a-z0-9_]{0,16}", "a precision such as fp32 or int8")]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_error: NotNegative | None  # None: the machine that exported it had too little memory to run it
    tolerance: NotNegative
    weight_bytes: Bytes  # of the weights that this stage uses, whichever file they are in
    activation_bytes: Bytes  # live at the same time inside the graph, for one image (two rows)

    @property
    def files(self) -> tuple[FileSpec, ...]:
        return (self.graph, *self.weights)

    @property
    def bytes(self) -> int:
        """Bytes of the graph and its weights; a file of weights may serve several stages and be larger."""
        return self.graph.bytes + self.weight_bytes


CLASS_CONDITIONAL, TEXT_TO_IMAGE, TOKENIZER = KINDS = ("class-conditional", "text-to-image", "tokenizer")


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

    kind: Annotated[str, OneOf(KINDS)]
    tokens_per_step: Count
    bits: Count
    pixels_per_token: Count
    patch_side: Count  # square that the token order is made of; 1 is raster order
    sizes: Annotated[tuple[Size, ...], Items(1, 1000)]  # of images in pixels; the first is the default
    prompt_tokens: Quantity  # of the longest prompt, with the queries of the first patch; 0 of a tokenizer alone
    num_classes: Quantity  # 0 for text-to-image
    class_names: tuple[Text, ...]
    decoder_noise: bool

    @property
    def generates(self) -> bool:
        """Whether it makes images; a tokenizer alone turns them into tokens and back."""
        return self.kind != TOKENIZER

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
        size = Size(width=_side("width", size.width), height=_side("height", size.height))
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
    conditional: Annotated[Text, Like(r"(?s).*\{prompt\}.*", "a text with {prompt} in it")]  # chat template
    unconditional: Text
    suffixes: Mapping[str, Tokens]  # WIDTHxHEIGHT -> ids that follow the text: start, sides, queries
    max_prompt: Count  # tokens of the longest prompt, template included
    example: Text  # a prompt of words that the model knows, for hints and first trials


def _side(name: str, value: object) -> int:
    """Read a side of a size that a caller made, of any kind; whether the model has it is said of both."""
    return whole(name, value, -(2**63), 2**63)


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Keys and values ``[R, heads, length, head_dim]`` of every layer; all 0 of a tokenizer alone, which has none."""

    layers: Annotated[int, Within(0, 1024)]
    heads: Quantity
    length: Quantity
    head_dim: Quantity
    dtype: Annotated[str, OneOf(FLOATS)]

    def bytes(self, rows: int) -> int:
        """Bytes of the keys and values of ``rows`` rows."""
        return 2 * self.layers * tensor_bytes((rows, self.heads, self.length, self.head_dim), self.dtype)


@dataclass(frozen=True, kw_only=True)
class MeasuredWindow:
    """What was measured of one window: sequential and windowed sampling of the same patches, one image at a time."""

    window: Annotated[int, Within(2, MAX_WINDOW)]
    sampler: Annotated[str, OneOf(SAMPLERS)]
    steps: Annotated[int, Within(1, MAX_STEPS)]
    sweeps: Annotated[float, Within(1, MAX_STEPS + 1)]  # of a patch, on average
    most_sweeps: Annotated[int, Within(1, MAX_STEPS + 1)]
    bits: Quantity  # compared, each from the same patches before it
    flipped: Quantity  # of them


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """How exact the windowed sampler is.

    Attributes:
        tolerance: how far a state may still move between two sweeps and count as settled.
        runs: measurements with this tolerance; none where the bundle could not be run when it was made.
    """

    tolerance: Annotated[float, Within(1e-7, 1)]
    runs: Annotated[tuple[MeasuredWindow, ...], Items(0, 1000)]


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    steps: Annotated[int, Within(1, MAX_STEPS)]
    guidance: Annotated[float, Within(1, MAX_GUIDANCE)]
    guidance_schedule: Annotated[str, OneOf(GUIDANCE_SCHEDULES)]
    time_shift: Annotated[float, Within(1e-6, 1e6)]
    sampler: Annotated[str, OneOf(SAMPLERS)] = "sde"
