"""What an opened backend has room for: the images that run together, and the memory plan of a request."""

from dataclasses import replace

from bitdance_edge.runtime.backends.choice import Choice
from bitdance_edge.runtime.backends.interface import Backend
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.memory_fit import most_images, require_memory
from bitdance_edge.runtime.memory_plan import Execution, MemoryPlan
from bitdance_edge.runtime.request import Settings
from bitdance_edge.runtime.values import quoted

DEFAULT_BATCH = 16  # images that run together where nobody says otherwise


def images_together(bundle: Bundle, backend: Backend, choice: Choice, max_batch: int | None) -> int:
    """The number of images that run together: as asked for, or as many as engines and memory allow.

    Raises:
        RequestError: the engines take fewer.
    """
    if max_batch is None:
        limit = min(choice.max_images or DEFAULT_BATCH, DEFAULT_BATCH)
        if choice.free_bytes is None:
            return limit
        return max(1, most_images(bundle, limit, choice.free_bytes, execution_on(backend, choice)))
    if choice.max_images is not None and max_batch > choice.max_images:
        raise RequestError(
            f"max_batch is {max_batch}, and the engines of {choice.target} take at most {choice.max_images} images at "
            f"once; build for more with: bitdance-edge build {quoted(bundle.folder)} --target {choice.target} "
            f"--max-images {max_batch}"
        )
    return max_batch


def plan_on(
    bundle: Bundle,
    backend: Backend,
    choice: Choice,
    images: int,
    settings: Settings | None = None,
    encodes: bool = False,
) -> MemoryPlan | None:
    """Plan the memory of ``images`` at once, by default guided and sampled as the bundle says; None: no GPU limits it.

    Args:
        encodes: whether the encoder is loaded too.

    Raises:
        RequestError: they do not fit.
    """
    if choice.free_bytes is None:
        return None
    how = execution_on(backend, choice)
    if settings is not None:
        asked = {
            "steps": settings.steps,
            "guidance_schedule": settings.guidance_schedule,
            "sampler": settings.sampler,
        }
        bundle = replace(bundle, sampling=replace(bundle.sampling, **asked))
        how = replace(
            how,
            guided=settings.guidance > 1,
            given=settings.given,
            encodes=encodes,
            judged=settings.candidates > 1,
            window=settings.window or 1,
        )
    return require_memory(bundle, images, choice.free_bytes, how)


def leave_room_for_weights(choice: Choice, plan: MemoryPlan | None) -> None:
    """Let engines that stream their weights keep those on the GPU for which a plan leaves room."""
    if choice.streamed is not None and choice.free_bytes is not None and plan is not None:
        choice.streamed.left = choice.free_bytes - plan.total


def execution_on(backend: Backend, choice: Choice) -> Execution:
    """How an opened backend runs a bundle, as far as memory goes."""
    sessions = choice.backend.startswith("onnxruntime")
    queued = backend.run_ahead > 0
    return Execution(files=choice.files, queued=queued, in_place=sessions, arenas=sessions and queued)
