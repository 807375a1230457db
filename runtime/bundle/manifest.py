"""The bundle: one folder with ``bundle.json`` and the files it names, the only thing that passes between rooms.

Knows names, sizes, shapes and checksums; runs nothing. Opens without network and without pickle.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from bitdance_edge.runtime.errors import BundleError, RequestError

FORMAT = 3
MANIFEST = "bundle.json"
RECORDINGS = "calibration/recordings"  # what calibration recorded of this bundle; no part of what is shipped
MODULE_PATH = "pkg.torch.onnx.name_scopes"  # metadata of each ONNX node: the PyTorch modules it came from
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "uint8": 1, "bool": 1}

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a stage.

    A dimension is a size, the name of one that changes (R rows, T tokens, B images or draws, N times, PH and PW patches
    down and across an image), or a multiple of such a name: ``16*PH``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with its named dimensions filled in."""
        return tuple(dim if isinstance(dim, int) else dim_size(dim, sizes) for dim in self.shape)


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
    """One exported graph, and how far it was from PyTorch when it was exported."""

    graph: FileSpec
    weights: tuple[FileSpec, ...]
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_error: float | None  # None: the machine that exported it had no room to run it
    tolerance: float
    weight_bytes: int  # of the weights this stage uses, wherever they are kept
    activation_bytes: int  # live at once inside the graph, one image (two rows)

    @property
    def files(self) -> tuple[FileSpec, ...]:
        return (self.graph, *self.weights)

    @property
    def bytes(self) -> int:
        """What the stage alone takes; a file of weights may serve several stages and hold more."""
        return self.graph.bytes + self.weight_bytes


CLASS_CONDITIONAL, TEXT_TO_IMAGE = KINDS = ("class-conditional", "text-to-image")


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """One size of image: in pixels, in tokens (``grid``) and in patches."""

    height: int
    width: int
    grid_height: int
    grid_width: int
    tokens: int
    patches: int
    patches_down: int
    patches_across: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def dims(self) -> dict[str, int]:
        """The named dimensions of decoder and encoder that this size settles."""
        return {"PH": self.patches_down, "PW": self.patches_across}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What the loop and a request need to know."""

    kind: str  # one of KINDS
    tokens_per_step: int
    bits: int
    pixels_per_token: int
    patch_side: int  # square that the token order is made of; 1 is raster order
    sizes: tuple[tuple[int, int], ...]  # (height, width) in pixels; the first is the default
    prompt_tokens: int  # of the longest prompt, with the queries of the first patch
    num_classes: int  # 0 where a prompt says what to draw
    class_names: tuple[str, ...]
    decoder_noise: bool

    @property
    def default_size(self) -> ImageSize:
        return self.size(*self.sizes[0])

    @property
    def largest_size(self) -> ImageSize:
        """The size of most tokens, which the cache is made for."""
        return self.size(*max(self.sizes, key=lambda size: size[0] * size[1]))

    def size(self, height: int, width: int) -> ImageSize:
        """One of this model's sizes.

        Raises:
            RequestError: the model does not make images of this size.
        """
        if (height, width) not in self.sizes:
            known = ", ".join(f"{height}x{width}" for height, width in self.sizes)
            raise RequestError(f"size is {height}x{width}; this bundle makes {known} only (height x width)")
        grid = height // self.pixels_per_token, width // self.pixels_per_token
        return ImageSize(
            height=height,
            width=width,
            grid_height=grid[0],
            grid_width=grid[1],
            tokens=grid[0] * grid[1],
            patches=grid[0] * grid[1] // self.tokens_per_step,
            patches_down=grid[0] // self.patch_side,
            patches_across=grid[1] // self.patch_side,
        )


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """How a prompt becomes token ids."""

    tokenizer: FileSpec
    conditional: str  # chat template around {prompt}
    unconditional: str
    suffixes: Mapping[str, tuple[int, ...]]  # size -> ids that follow the text: start, height, width, queries
    max_prompt: int  # tokens of the longest prompt, template included
    example: str  # a prompt that the model knows every word of, to show and to try it with


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Keys and values ``[R, heads, length, head_dim]`` of every layer."""

    layers: int
    heads: int
    length: int
    head_dim: int
    dtype: str

    def bytes(self, rows: int) -> int:
        return 2 * self.layers * rows * self.heads * self.length * self.head_dim * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    steps: int
    guidance: float
    guidance_schedule: str
    time_shift: float
    sampler: str = "sde"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    folder: Path
    name: str
    profile: str
    model: ModelSpec
    cache: CacheSpec
    sampling: SamplingSpec  # what a request gets where it does not say otherwise
    published: SamplingSpec | None = None  # what the checkpoint was published with; None where that is ``sampling``
    stages: Mapping[str, StageSpec]
    text: TextSpec | None  # of text-to-image models
    links: Mapping[str, str]  # file -> the checkpoint's file that it is a hard link to
    provenance: Mapping[str, Any]
    fast_preview: FileSpec | None = None  # map from bits to pixels, fitted to the decoder
    digest: str  # SHA-256 of bundle.json, which holds those of all files

    @classmethod
    def open(cls, folder: str | Path) -> "Bundle":
        """Read and validate ``bundle.json``; the files are checked when a stage is loaded (``verified``).

        Raises:
            BundleError: no bundle there, another format version, or a manifest that is not whole.
        """
        folder = Path(folder)
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise BundleError(f"no bundle at {folder}: it has no {MANIFEST}; make one with: bitdance-edge export")
        content = manifest.read_bytes()
        try:
            data = json.loads(content)
        except ValueError as error:
            raise BundleError(
                f"{manifest} is not JSON ({error}); it may be truncated: copy or export it again"
            ) from None
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise BundleError(f"{manifest} has format {found!r}; this version reads format {FORMAT}: export it again")
        del data["format"]
        parsers: dict[str, Callable[[Any, str], Any]] = {
            "model": lambda value, at: _record(ModelSpec, value, at, {"sizes": _sizes}),
            "fast_preview": lambda value, at: None if value is None else _file(value, at),
            "text": lambda value, at: None if value is None else _text(value, at),
            "links": _mapping,
            "cache": lambda value, at: _record(CacheSpec, value, at),
            "sampling": lambda value, at: _record(SamplingSpec, value, at),
            "published": lambda value, at: None if value is None else _record(SamplingSpec, value, at),
            "stages": lambda value, at: {
                name: _stage(stage, f"{at}.{name}") for name, stage in _mapping(value, at).items()
            },
        }
        digest = hashlib.sha256(content).hexdigest()
        return _record(cls, {**data, "folder": folder, "digest": digest}, str(manifest), parsers)

    def write(self) -> None:
        """Write ``bundle.json`` into the folder (an exporter's last step, in a folder not yet in its place)."""
        data = {"format": FORMAT, **asdict(self)}
        for derived in ("folder", "digest"):
            del data[derived]
        (self.folder / MANIFEST).write_text(json.dumps(data, indent=1) + "\n")

    @property
    def published_sampling(self) -> SamplingSpec:
        return self.published or self.sampling

    def require_fast_previews(self) -> FileSpec:
        """Raises: RequestError: the bundle was exported without."""
        if self.fast_preview is None:
            raise RequestError(
                f"{self.name} has no fast previews; ask for full ones (preview_kind 'full'), or export it again with "
                "bitdance-edge export, in fp32 or fp16 and without --no-fast-previews"
            )
        return self.fast_preview

    def stage(self, name: str) -> StageSpec:
        if name not in self.stages:
            raise BundleError(f"{self.folder} has no {name} stage; it has {', '.join(self.stages)}: export it again")
        return self.stages[name]

    def verified(self, name: str) -> Path:
        """The graph file of a stage, after every file of that stage was found to be the one in the manifest.

        Raises:
            BundleError: a file is missing or its size or SHA-256 differs.
        """
        stage = self.stage(name)
        for file in stage.files:
            self.verified_file(file)
        return self.folder / stage.graph.path

    def verified_file(self, file: FileSpec) -> Path:
        """One file of the bundle, checked as by ``verified``."""
        path = self.folder / file.path
        if not path.is_file():
            raise BundleError(f"{path} is missing; copy the whole bundle again or export it again")
        size = path.stat().st_size
        if size != file.bytes:
            raise BundleError(
                f"{path} has {size} bytes, its bundle says {file.bytes}: truncated or altered; copy it again"
            )
        if sha256(path) != file.sha256:
            raise BundleError(f"{path} was altered: its SHA-256 is not the one in {MANIFEST}; copy or export it again")
        return path

    def shared_files(self) -> list[str]:
        """Files that are still the same as a checkpoint's: what is written to one is written to the other."""
        return [name for name in self.links if (self.folder / name).stat().st_nlink > 1]

    def cache_names(self) -> Iterator[tuple[str, str]]:
        """The backbone's cache tensors, as pairs of input and output name."""
        for layer in range(self.cache.layers):
            for part in ("key", "value"):
                yield f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_spec(folder: Path, path: Path) -> FileSpec:
    """Describe a file of a bundle being written."""
    return FileSpec(path=path.relative_to(folder).as_posix(), sha256=sha256(path), bytes=path.stat().st_size)


def _stage(value: Any, at: str) -> StageSpec:
    def tensors(value: Any, at: str) -> tuple[TensorSpec, ...]:
        items = enumerate(_list(value, at))
        return tuple(_record(TensorSpec, item, f"{at}[{i}]", {"shape": _shape}) for i, item in items)

    return _record(
        StageSpec,
        value,
        at,
        {
            "graph": _file,
            "weights": lambda value, at: tuple(_file(item, f"{at}[{i}]") for i, item in enumerate(_list(value, at))),
            "max_error": lambda value, at: None if value is None else float(value),
            "inputs": tensors,
            "outputs": tensors,
        },
    )


def _file(value: Any, at: str) -> FileSpec:
    file = _record(FileSpec, value, at)
    path = PurePosixPath(file.path)
    if path.is_absolute() or ".." in path.parts:
        raise BundleError(f"{at}.path is {file.path!r}; a bundle names only files inside itself")
    return file


def _text(value: Any, at: str) -> TextSpec:
    def suffixes(value: Any, at: str) -> dict[str, tuple[int, ...]]:
        return {size: tuple(ids) for size, ids in _mapping(value, at).items()}

    return _record(TextSpec, value, at, {"tokenizer": _file, "suffixes": suffixes})


def _sizes(value: Any, at: str) -> tuple[tuple[int, int], ...]:
    try:
        sizes = tuple((int(height), int(width)) for height, width in value)
    except (TypeError, ValueError):
        sizes = ()
    if not sizes:
        raise BundleError(f"{at} is {value!r}; it must list [height, width] in pixels")
    return sizes


def _shape(value: Any, at: str) -> tuple[int | str, ...]:
    if not isinstance(value, list) or not all(isinstance(dim, int | str) for dim in value):
        raise BundleError(f"{at} is {value!r}; a shape is a list of sizes and names")
    return tuple(value)


def _list(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise BundleError(f"{at} is {type(value).__name__}; a list is expected")
    return value


def _mapping(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BundleError(f"{at} is {type(value).__name__}; an object is expected")
    return value


def _record(
    kind: type[Record], value: Any, at: str, parsers: Mapping[str, Callable[[Any, str], Any]] | None = None
) -> Record:
    """Build a dataclass from JSON, refusing missing keys, unknown keys and values of another type.

    A field with a default may be missing: it is younger than the format, and bundles from before it have what it says.
    """
    value, parsers = _mapping(value, at), parsers or {}
    optional = {field.name: field.default for field in fields(kind) if field.default is not MISSING}  # type: ignore[arg-type]
    value = {**optional, **value}
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if missing := names - value.keys():
        raise BundleError(f"{at} lacks {', '.join(sorted(missing))}; export the bundle again")
    if unknown := value.keys() - names:
        raise BundleError(f"{at} holds unknown {', '.join(sorted(unknown))}; it was written by another version")
    parsed = {}
    for field in fields(kind):  # type: ignore[arg-type]
        item, place = value[field.name], f"{at}.{field.name}"
        if field.name in parsers:
            item = parsers[field.name](item, place)
        elif field.type is float and isinstance(item, int) and not isinstance(item, bool):
            item = float(item)
        elif field.type in (int, float, str, bool) and type(item) is not field.type:
            raise BundleError(f"{place} is {item!r}; {field.type.__name__} is expected")
        elif isinstance(item, list):
            item = tuple(item)
        parsed[field.name] = item
    return kind(**parsed)
