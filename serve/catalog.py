"""The served models: their bundles, their image sizes, and how many images of each fit in memory at once."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil

from bitdance_edge.runtime import Bundle, RequestError, Size
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.memory_plan import plan_memory
from bitdance_edge.runtime.prompt import PromptEncoder
from bitdance_edge.serve.errors import ApiError, ServeError, insufficient_memory
from bitdance_edge.serve.settings import ServeSettings


@dataclass(frozen=True, kw_only=True)
class Model:
    """A bundle under the id that requests name it by."""

    id: str
    bundle: Bundle
    images_at_once: int  # 0: the memory limit leaves no room for one
    nearest_size: bool = False  # in place of a size that it does not make

    @cached_property
    def encoder(self) -> PromptEncoder | None:
        """The prompt encoder of a text-to-image model; None for a class-conditional one."""
        return None if self.bundle.text is None else PromptEncoder.open(self.bundle)

    def size(self, name: str | None) -> ImageSize:
        """Look up "WIDTHxHEIGHT", or the default for "auto" and None.

        Raises:
            ApiError: 400 invalid_size; the message lists the sizes of the model and the nearest one.
        """
        spec = self.bundle.model
        if name in (None, "auto"):
            return spec.default_size
        choices = ", ".join(["auto", *map(str, spec.sizes)])
        try:
            wanted = Size.parse(name)
        except RequestError:
            message = f"size is {name[:40]!r}; {self.id} makes {choices}"
            raise ApiError(400, "invalid_size", message, param="size") from None
        nearest = self.nearest(wanted)
        if nearest != wanted and not self.nearest_size:
            message = f"size is {str(wanted)!r}; {self.id} makes {choices}; the nearest is {nearest}"
            raise ApiError(400, "invalid_size", message, param="size")
        return spec.size(nearest)

    def nearest(self, wanted: Size) -> Size:
        """The size of the model that is nearest to another."""
        return min(self.bundle.model.sizes, key=lambda size: _distance(size, wanted))

    def require_memory(self, limit: int) -> None:
        """Raises: ApiError 507: the memory limit leaves no room for one image."""
        if self.images_at_once == 0:
            needed = plan_memory(self.bundle, 1).held
            raise insufficient_memory(
                f"an image of {self.id} needs {needed / 1e6:.1f} MB, and this server may use {limit / 1e6:.1f} MB; "
                "start it with a larger --memory, or serve a smaller bundle"
            )


class Catalog:
    """The served models by id, in the order of the command line."""

    def __init__(self, settings: ServeSettings) -> None:
        if not settings.bundles:
            raise ServeError("no bundle given; name at least one folder written by: bitdance-edge export")
        self.memory = psutil.virtual_memory().available if settings.memory is None else settings.memory
        self.models: dict[str, Model] = {}
        for folder in settings.bundles:
            model_id = _id_of(folder)
            if model_id in self.models:
                raise ServeError(f"two bundles are named {model_id!r}, which would be the id of both; rename one")
            bundle = Bundle.open(folder)
            at_once = _images_at_once(bundle, settings.max_batch, self.memory)
            model = Model(id=model_id, bundle=bundle, images_at_once=at_once, nearest_size=settings.nearest_size)
            self.models[model_id] = model
            _ = model.encoder  # so that a tokenizer that cannot be loaded fails here, not in the first request
        self.aliases = dict(settings.aliases)
        for alias, name in self.aliases.items():
            if name not in self.models or alias in self.models:
                known = ", ".join(self.models)
                problem = "is the name of a model already" if alias in self.models else f"{name!r} is not served"
                raise ServeError(f"alias {alias}={name}: {problem}; write NAME=MODEL, with MODEL one of {known}")

    @property
    def default(self) -> Model:
        return next(iter(self.models.values()))

    def get(self, model_id: str | None) -> Model:
        """Look up a model by id; None: the default one. Raises: ApiError 404 model_not_found."""
        if model_id is None:
            return self.default
        model_id = self.aliases.get(model_id, model_id)
        if model_id not in self.models:
            known = ", ".join([*self.models, *self.aliases])
            message = f"model is {model_id[:100]!r}; this server has: {known}"
            raise ApiError(404, "model_not_found", message, param="model")
        return self.models[model_id]


def _id_of(path: Path) -> str:
    """Return the name of a folder or link, or of an archive without its suffix; "." and ".." have none of their own."""
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return name.removesuffix(".tar") if path.is_file() else name


def _images_at_once(bundle: Bundle, largest: int, memory: int) -> int:
    return bisect_right(range(1, largest + 1), memory, key=lambda images: plan_memory(bundle, images).held)


def _distance(size: Size, wanted: Size) -> tuple[float, float]:
    """How far two sizes are apart: first in shape, then in area."""
    shape = math.log(size.width / size.height) - math.log(wanted.width / wanted.height)
    return round(abs(shape), 6), abs(math.log(size.area / wanted.area))
