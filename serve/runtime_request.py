"""Turns the fields of an HTTP request into work, and work into a request of the runtime."""

import base64
import binascii
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from bitdance_edge.errors import plain
from bitdance_edge.runtime import Bundle, Request, RequestError
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.errors import PromptTooLongError
from bitdance_edge.runtime.mask import place_mask, read_mask
from bitdance_edge.runtime.request import MAX_SEED
from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.pictures import file_of, fitted, read_file, return_memory
from bitdance_edge.serve.schema import GenerationFields, ImageRequest, JobRequest, Prefix
from bitdance_edge.serve.settings import ServeSettings
from bitdance_edge.serve.work import Change, Generation


def generation(
    fields: GenerationFields, model: Model, settings: ServeSettings, change: Change | None = None
) -> Generation:
    """Check a request against its model and the server's limits; a missing seed is drawn at random.

    Args:
        change: what it changes of an image.

    Raises:
        ApiError: the field, its value and what is allowed.
    """
    if not model.bundle.model.generates:
        message = f"{model.id} is a tokenizer, which draws nothing: send images to /v1/tokens, or name another model"
        raise ApiError(400, "no_generator", message, param="model")
    sampling = model.bundle.published_sampling if fields.published else model.bundle.sampling
    images = _within("n", fields.n, 1, settings.max_images)
    steps = _within("num_inference_steps", fields.num_inference_steps, sampling.steps, settings.max_steps)
    for name, text in (("prompt", fields.prompt), ("negative_prompt", fields.negative_prompt or "")):
        if len(text) > settings.max_prompt:
            message = f"{name} has {len(text)} characters; this server takes {settings.max_prompt} at most"
            raise ApiError(413, "prompt_too_long", message, param=name)
    if fields.negative_prompt and model.bundle.text is None:
        raise _invalid("negative_prompt", f"{model.id} makes images of classes and takes no negative prompt; omit it")
    size = model.size(fields.size)
    seed = secrets.randbits(32) if fields.seed is None else fields.seed
    each = change.candidates if change else 1
    if seed + images * each - 1 > MAX_SEED:
        most = MAX_SEED - images * each + 1
        raise _invalid(
            "seed", f"seed is {seed}; image i uses seed + {each} * i, and for {images} images the largest is {most}"
        )
    work = Generation(
        model=model.id,
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt or None,
        seeds=tuple(range(seed, seed + images * each, each)),
        steps=steps,
        guidance=sampling.guidance if fields.guidance_scale is None else fields.guidance_scale,
        guidance_schedule=fields.guidance_schedule or sampling.guidance_schedule,
        sampler=fields.sampler or sampling.sampler,
        window=_window(fields, model),
        size=size.pixels,
        prefix=_prefix(fields, model, size),
        change=change,
        previews=_previews(fields, size.patches),
        fast_previews=_fast_previews(fields, model),
    )
    if change is not None:
        _require_possible(change, work, model)
    try:
        resolved = runtime_request([work], model.bundle).resolve(model.bundle, model.encoder)
    except PromptTooLongError as error:
        raise ApiError(413, "prompt_too_long", plain(error), param="prompt") from None
    except RequestError as error:  # everything but the prompt is checked above
        raise ApiError(400, "invalid_prompt", plain(error), param="prompt") from None
    return replace(work, prompt_tokens=len(resolved.images[0].conditional))


def _window(fields: GenerationFields, model: Model) -> int | Literal["auto"]:
    if isinstance(fields.window, int) and fields.window > 1 and model.bundle.window is None:
        raise _invalid("window", f"{model.id} has no windowed sampler; omit window, or give 1")
    return 1 if fields.window is None else fields.window


def runtime_request(works: Sequence[Generation], bundle: Bundle) -> Request:
    """Join generations of the same shape into one request of the runtime; each image has its own seed and prefix."""
    first = works[0]
    prefixes = [work.prefix for work in works for _ in work.seeds if work.prefix is not None]
    prompts = [work.prompt for work in works for _ in work.seeds]
    return Request(
        classes=prompts if bundle.text is None else (),
        prompts=prompts if bundle.text is not None else (),
        negative_prompt=first.negative_prompt,
        seeds=[seed for work in works for seed in work.seeds],
        steps=first.steps,
        guidance=first.guidance,
        guidance_schedule=first.guidance_schedule,
        sampler=first.sampler,
        window=first.window,
        size=first.size,
        prefix=np.stack(prefixes) if prefixes else None,
        **({} if first.change is None else vars(first.change)),
    )


def change(fields: JobRequest, model: Model) -> Change | None:
    """Decode the image that a job changes, and its mask, in this thread; None: it changes none.

    Raises:
        ApiError: 400: they cannot be read, or are of different sizes.
    """
    edit, size = fields.edit, model.size(fields.size)
    if edit is None:
        return None
    if fields.prefix is not None:
        raise _invalid("edit", "edit and prefix are both given; omit one of the two")
    if (edit.image is None) == (edit.tokens is None):
        raise _invalid("edit", "edit needs an image or tokens, and not both")
    own = None
    if edit.image is not None:
        own, init = fitted(file_of(edit.image, "edit.image"), "edit.image", size.pixels, edit.fit)
    else:
        init = unpacked_tokens(edit.tokens or "", "edit", model, size)
    mask = None
    if edit.mask is not None:
        drawn = read_file(file_of(edit.mask, "edit.mask"), "edit.mask", lambda file: read_mask(file, "edit.mask"))
        try:
            mask = place_mask(drawn, own, size.pixels, edit.fit, "edit.mask")
        except RequestError as error:
            raise _invalid("edit", plain(error)) from None
        finally:
            return_memory()
    return Change(init=init, mask=mask, strength=edit.strength, candidates=edit.candidates, blend=edit.blend)


def prefix_tokens(prefix: Prefix, model: Model, size: ImageSize) -> np.ndarray:
    """Unpack the first patches of an image that /v1/tokens has tokenised: float64 ``[K, C]`` of -1 and +1."""
    if prefix.patches > size.patches:
        raise _invalid("prefix", f"prefix.patches is {prefix.patches}; an image of {size} has {size.patches}")
    tokens = unpacked_tokens(prefix.tokens, "prefix", model, size)
    return tokens[: prefix.patches * model.bundle.model.tokens_per_step]


def unpacked_tokens(text: str, param: str, model: Model, size: ImageSize) -> np.ndarray:
    """Unpack the tokens of an image that /v1/tokens has tokenised: float64 ``[h*w, C]`` of -1 and +1.

    Args:
        param: the field that they are in, as errors name it.
    """
    spec = model.bundle.model
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(param, f"{param}.tokens is not base64; take it from /v1/tokens") from None
    if len(packed) != -(-size.tokens * spec.bits // 8):
        holds = f"an image of {size} has {size.tokens} tokens of {spec.bits} bits"
        raise _invalid(param, f"{param}.tokens has {len(packed)} bytes; {holds}")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=size.tokens * spec.bits)
    return bits.reshape(size.tokens, spec.bits) * 2.0 - 1.0


def packed_tokens(tokens: np.ndarray) -> str:
    """Pack tokens ``[h*w, C]`` into base64, one bit for each value: 1 for +1, first bit highest."""
    return base64.b64encode(np.packbits(tokens > 0).tobytes()).decode()


def _require_possible(change: Change, work: Generation, model: Model) -> None:
    """Check a change with a prompt that is right for certain, so that an error is about the change."""
    asked = replace(Request.example(model.bundle), size=work.size, seed=0, **vars(change))
    try:
        asked.resolve(model.bundle, model.encoder)
    except RequestError as error:
        raise _invalid("edit", plain(error)) from None


def _prefix(fields: GenerationFields, model: Model, size: ImageSize) -> np.ndarray | None:
    """The tokens that a job starts from; None if it starts from nothing."""
    if not isinstance(fields, JobRequest) or fields.prefix is None:
        return None
    tokens = prefix_tokens(fields.prefix, model, size)
    return tokens if len(tokens) else None


def _previews(fields: GenerationFields, patches: int) -> frozenset[int]:
    """The patches after which to show an unfinished image."""
    if isinstance(fields, JobRequest):
        return frozenset(range(fields.preview_every, patches, fields.preview_every) if fields.preview_every else ())
    partial = (fields.partial_images or 0) if isinstance(fields, ImageRequest) and fields.stream else 0
    spread = {round(patches * (i + 1) / (partial + 1)) for i in range(partial)}
    return frozenset(patch for patch in spread if 0 < patch < patches)


def _fast_previews(fields: GenerationFields, model: Model) -> bool:
    if not isinstance(fields, JobRequest) or fields.preview_kind == "full":
        return False
    if model.bundle.fast_preview is None:
        raise _invalid(
            "preview_kind", f"preview_kind is 'fast'; the bundle of {model.id} has no fast previews, so use 'full'"
        )
    return True


def _within(name: str, value: int | None, default: int, most: int) -> int:
    if value is not None and not 1 <= value <= most:
        raise _invalid(name, f"{name} is {value}; it must be from 1 to {most}")
    return default if value is None else value


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)
