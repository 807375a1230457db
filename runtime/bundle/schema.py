"""JSON to the records of a manifest, refusing what is missing, unknown or of another type."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import PurePosixPath
from typing import Any, TypeVar

from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.bundle.specs import FileSpec, SamplingSpec, StageSpec, TensorSpec, TextSpec
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BundleError

Record = TypeVar("Record")


def optional(parse: Callable[[Any, str], Record]) -> Callable[[Any, str], Record | None]:
    """Make a parser accept null."""
    return lambda value, at: None if value is None else parse(value, at)


def sampling(value: Any, at: str) -> SamplingSpec:
    return record(SamplingSpec, value, at)


def stages(value: Any, at: str) -> dict[str, StageSpec]:
    found = mapping(value, at)
    if unknown := found.keys() - set(StageName):
        raise BundleError(f"{at} names unknown stages {', '.join(sorted(unknown))}; known are {', '.join(StageName)}")
    return {StageName(name): _stage(stage, f"{at}.{name}") for name, stage in found.items()}


def _stage(value: Any, at: str) -> StageSpec:
    def tensors(value: Any, at: str) -> tuple[TensorSpec, ...]:
        items = enumerate(_list(value, at))
        return tuple(record(TensorSpec, item, f"{at}[{i}]", {"shape": _shape}) for i, item in items)

    return record(
        StageSpec,
        value,
        at,
        {
            "graph": file,
            "weights": lambda value, at: tuple(file(item, f"{at}[{i}]") for i, item in enumerate(_list(value, at))),
            "max_error": optional(lambda value, at: float(value)),
            "inputs": tensors,
            "outputs": tensors,
        },
    )


def file(value: Any, at: str) -> FileSpec:
    found = record(FileSpec, value, at)
    path = PurePosixPath(found.path)
    if path.is_absolute() or ".." in path.parts:
        raise BundleError(f"{at}.path is {found.path!r}; a bundle names only files inside itself")
    return found


def text(value: Any, at: str) -> TextSpec:
    def suffixes(value: Any, at: str) -> dict[str, tuple[int, ...]]:
        return {size: tuple(ids) for size, ids in mapping(value, at).items()}

    return record(TextSpec, value, at, {"tokenizer": file, "suffixes": suffixes})


def sizes(value: Any, at: str) -> tuple[Size, ...]:
    found = tuple(record(Size, size, f"{at}[{i}]") for i, size in enumerate(_list(value, at)))
    if not found:
        raise BundleError(f"{at} is empty; it must list at least one width and height in pixels")
    return found


def _shape(value: Any, at: str) -> tuple[int | str, ...]:
    if not isinstance(value, list) or not all(isinstance(dim, int | str) for dim in value):
        raise BundleError(f"{at} is {value!r}; a shape is a list of sizes and names")
    return tuple(value)


def _list(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise BundleError(f"{at} is {type(value).__name__}; a list is expected")
    return value


def mapping(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BundleError(f"{at} is {type(value).__name__}; an object is expected")
    return value


def record(
    kind: type[Record], value: Any, at: str, parsers: Mapping[str, Callable[[Any, str], Any]] | None = None
) -> Record:
    """Build a dataclass from JSON, refusing missing keys, unknown keys and values of another type.

    A field with a default may be missing: it was added later, and older bundles get the default.
    """
    value, parsers = mapping(value, at), parsers or {}
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
