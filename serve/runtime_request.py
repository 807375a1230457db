"""From what a client asked to what the runtime runs: the one place that knows both."""

import base64
import binascii
import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bitdance_edge.runtime import Bundle, Request, RequestError
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.errors import PromptTooLongError
from bitdance_edge.runtime.request import MAX_SEED
from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.schema import GenerationFields, ImageRequest, JobRequest, Prefix
from bitdance_edge.serve.settings import ServeSettings
from bitdance_edge.serve.work import Generation


def generation(asked: GenerationFields, model: Model, settings: ServeSettings) -> Generation:
    """Check a request against its model and the server's limits, and draw the seed that was not given.

    Raises:
        ApiError: names the field, its value and what is allowed.
    """
    sampling = model.bundle.published_sampling if asked.published else model.bundle.sampling
    images = _within("n", asked.n, 1, settings.max_images)
    steps = _within("num_inference_steps", asked.num_inference_steps, sampling.steps, settings.max_steps)
    if len(asked.prompt) > settings.max_prompt:
        message = f"the prompt has {len(asked.prompt)} characters; this server takes {settings.max_prompt}"
        raise ApiError(413, "prompt_too_long", message, param="prompt")
    if asked.negative_prompt and model.bundle.text is None:
        raise _invalid("negative_prompt", f"{model.id} makes images of classes; it takes no negative prompt")
    size = model.size(asked.size)
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    if seed + images - 1 > MAX_SEED:
        raise _invalid("seed", f"seed {seed} leaves no room for {images} images; the largest is {MAX_SEED}")
    work = Generation(
        model=model.id,
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt or None,
        seeds=tuple(range(seed, seed + images)),
        steps=steps,
        guidance=sampling.guidance if asked.guidance_scale is None else asked.guidance_scale,
        guidance_schedule=asked.guidance_schedule or sampling.guidance_schedule,
        sampler=asked.sampler or sampling.sampler,
        size=size.pixels,
        prefix=_kept(asked, model, size),
        previews=_previews(asked, size.patches),
        fast_previews=_fast(asked, model),
    )
    try:
        resolved = runtime_request([work], model.bundle).resolve(model.bundle, model.encoder)
    except PromptTooLongError as error:
        raise ApiError(413, "prompt_too_long", str(error), param="prompt") from None
    except RequestError as error:  # all but the prompt is checked above
        raise ApiError(400, "invalid_prompt", str(error), param="prompt") from None
    return replace(work, prompt_tokens=len(resolved.images[0].conditional))


def runtime_request(works: Sequence[Generation], bundle: Bundle) -> Request:
    """One request of the runtime for generations of the same shape, each image with its own seed and prefix."""
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
        size=first.size,
        prefix=np.stack(prefixes) if prefixes else None,
    )


def prefix_tokens(prefix: Prefix, model: Model, size: ImageSize) -> np.ndarray:
    """The first patches of an image that /v1/tokens has tokenised, float32 ``[K, C]`` of -1 and +1."""
    spec = model.bundle.model
    try:
        packed = base64.b64decode(prefix.tokens, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("prefix", "prefix.tokens is not base64; take it from /v1/tokens") from None
    if len(packed) != -(-size.tokens * spec.bits // 8):
        holds = f"an image of {size} has {size.tokens} tokens of {spec.bits} bits"
        raise _invalid("prefix", f"prefix.tokens has {len(packed)} bytes; {holds}")
    if prefix.patches > size.patches:
        raise _invalid("prefix", f"prefix.patches is {prefix.patches}; an image has {size.patches}")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=size.tokens * spec.bits)
    return (bits.reshape(size.tokens, spec.bits) * 2.0 - 1.0)[: prefix.patches * spec.tokens_per_step]


def packed_tokens(tokens: np.ndarray) -> str:
    """Tokens ``[h*w, C]`` as base64, a bit each: 1 for +1, first bit highest."""
    return base64.b64encode(np.packbits(tokens > 0).tobytes()).decode()


def _kept(asked: GenerationFields, model: Model, size: ImageSize) -> np.ndarray | None:
    """The given start of an image; none where nothing of it is kept."""
    if not isinstance(asked, JobRequest) or asked.prefix is None:
        return None
    tokens = prefix_tokens(asked.prefix, model, size)
    return tokens if len(tokens) else None


def _previews(asked: GenerationFields, patches: int) -> frozenset[int]:
    """The patches after which to show an image that is not yet whole."""
    if isinstance(asked, JobRequest):
        return frozenset(range(asked.preview_every, patches, asked.preview_every) if asked.preview_every else ())
    partial = (asked.partial_images or 0) if isinstance(asked, ImageRequest) and asked.stream else 0
    spread = {round(patches * (i + 1) / (partial + 1)) for i in range(partial)}
    return frozenset(patch for patch in spread if 0 < patch < patches)


def _fast(asked: GenerationFields, model: Model) -> bool:
    if not isinstance(asked, JobRequest) or asked.preview_kind == "full":
        return False
    if model.bundle.fast_preview is None:
        raise _invalid(
            "preview_kind", f"{model.id} has no fast previews; its bundle was exported without: ask for full"
        )
    return True


def _within(name: str, value: int | None, default: int, most: int) -> int:
    if value is not None and not 1 <= value <= most:
        raise _invalid(name, f"{name} is {value}; this server takes 1 to {most}")
    return default if value is None else value


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)
