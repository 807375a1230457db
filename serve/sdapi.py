"""What /sdapi/v1 keeps between requests, and how it describes an image.

The web UI serves one person, so its API has one model and one progress. Here each address of a client has its own.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from bitdance_edge.runtime import GeneratedImage
from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.sdapi_schema import Progress, ProgressState
from bitdance_edge.serve.ticket import ImageReady, PatchReady, Ticket
from bitdance_edge.serve.work import Generation

MOST_CLIENTS = 1000  # whose model is remembered


class SdRequest:
    """A request under way."""

    def __init__(self, ticket: Ticket, patches: int) -> None:
        self.ticket, self.patches = ticket, patches * ticket.work.images
        self.patch_of = [0] * ticket.work.images
        self.finished = 0
        self.started = time.monotonic()

    def take(self, event: object) -> None:
        """Note an event of the ticket."""
        if isinstance(event, PatchReady):
            for image in event.images:
                self.patch_of[image] = event.patch
        elif isinstance(event, ImageReady):
            self.finished += 1


class SdClients:
    """The model that each client has chosen, and its requests."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, str] = OrderedDict()
        self._requests: dict[str, list[SdRequest]] = {}

    def model(self, client: str) -> str | None:
        """The name of the model that this client has chosen; None: the default."""
        return self._models.get(client)

    def choose(self, client: str, model: str) -> None:
        self._models[client] = model
        self._models.move_to_end(client)
        if len(self._models) > MOST_CLIENTS:
            self._models.popitem(last=False)

    @contextmanager
    def following(self, client: str, request: SdRequest) -> Iterator[None]:
        """Count a request as under way."""
        self._requests.setdefault(client, []).append(request)
        try:
            yield
        finally:
            self._requests[client].remove(request)
            if not self._requests[client]:
                del self._requests[client]

    def interrupt(self, client: str) -> None:
        """Cancel the requests of this client at their next patch."""
        for request in self._requests.get(client, []):
            request.ticket.cancel()

    def progress(self, client: str) -> Progress:
        requests = self._requests.get(client, [])
        done = sum(sum(request.patch_of) for request in requests)
        patches = sum(request.patches for request in requests)
        images = sum(len(request.patch_of) for request in requests)
        share = done / patches if patches else 0.0
        spent = time.monotonic() - min((request.started for request in requests), default=0.0)
        return Progress(
            progress=share,
            eta_relative=spent * (1 - share) / share if share else 0.0,
            state=ProgressState(
                job="txt2img" if requests else "",
                job_count=images,
                job_no=sum(request.finished for request in requests),
                sampling_step=done,
                sampling_steps=patches,
            ),
        )


def infotext(work: Generation, image: GeneratedImage, model: Model) -> str:
    """The text that web UIs show and read: the prompts on lines of their own, then the settings."""
    settings = {
        "Steps": work.steps,
        "Sampler": work.sampler,
        "CFG scale": f"{work.guidance:g}",
        "Seed": image.seed,
        "Size": work.size,
        "Model hash": model.bundle.digest[:10],
        "Model": model.id,
        "Version": f"bitdance-edge {version('bitdance-edge')}",
    }
    negative = [f"Negative prompt: {work.negative_prompt}"] if work.negative_prompt else []
    return "\n".join([work.prompt, *negative, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def information(work: Generation, model: Model, images: list[tuple[GeneratedImage, str]]) -> str:
    """The ``info`` of an answer: JSON about all images, given with their info texts."""
    count = len(images)
    return json.dumps(
        {
            "prompt": work.prompt,
            "all_prompts": [work.prompt] * count,
            "negative_prompt": work.negative_prompt or "",
            "all_negative_prompts": [work.negative_prompt or ""] * count,
            "seed": work.seeds[0],
            "all_seeds": [image.seed for image, _ in images],
            "width": work.size.width,
            "height": work.size.height,
            "sampler_name": work.sampler,
            "cfg_scale": work.guidance,
            "steps": work.steps,
            "batch_size": count,
            "sd_model_name": model.id,
            "sd_model_hash": model.bundle.digest[:10],
            "infotexts": [text for _, text in images],
            "version": f"bitdance-edge {version('bitdance-edge')}",
        }
    )
