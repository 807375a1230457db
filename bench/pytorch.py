"""PyTorch on the checkpoint: the plain path of ``model/``, or with head and decoder compiled.

Stages are timed inside the whole image, each without the stages that it calls; the rest is PyTorch's own overhead
between them. ``cond_embed``, which our backbone stage runs once a patch, is part of the head here: the published head
runs it at every evaluation.
"""

from collections.abc import Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitdance_edge.bench.bits import Predictions, recorded_predictions
from bitdance_edge.bench.measured import Image, StageSeconds
from bitdance_edge.bench.work import Work, padded
from bitdance_edge.export.stages import DecoderStage
from bitdance_edge.model import BitDance, TextToImage, generator, load_generator, text_to_image
from bitdance_edge.model.text_checkpoint import is_text_to_image, load_text_to_image
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.noise import ImageNoise, Stream, normals
from bitdance_edge.runtime.request import Settings
from bitdance_edge.runtime.sampler import patch_guidance


class TorchContender:
    """The model as it was trained, asked for the same images as a bundle.

    Args:
        bundle: gives sizes, sampling and prompts; its weights are not read.
        compiled: ``torch.compile`` for head and decoder; the backbone, whose cache grows every step, stays eager.
    """

    def __init__(self, checkpoint: str, bundle: str, threads: int, work: Work, compiled: bool) -> None:
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self.bundle, self.work = Bundle.open(bundle), work
        started = perf_counter()
        self.model = _load(checkpoint)
        self.opened = perf_counter() - started
        self.timers = StageTimers()
        self.decode = DecoderStage(self.model)
        if compiled:
            for module in (self.model.head, self.model.tokenizer.decoder):
                setattr(module, "forward", torch.compile(module.forward))  # noqa: B010  a method, to the checker
        self._time_stages(inside_head=not compiled)

    def instructions(self) -> dict[str, str]:
        """PyTorch does not say which kernels it runs; what it may use is one line for all stages."""
        return {"all": f"up to {torch.backends.cpu.get_cpu_capability()} in float32, neither VNNI nor AMX"}

    @torch.no_grad()
    def image(self) -> Image:
        self.timers.stages.clear()
        settings, patches = self.work.settings(self.bundle), self.work.drawn(self.bundle)
        with recorded_predictions(generator if isinstance(self.model, BitDance) else text_to_image) as predicted:
            tokens = np.concatenate([p.numpy() for p in islice(self._patches(settings, patches), patches)], axis=1)
        return Image(
            tokens=tokens.astype(np.int8),
            pixels=self._pixels(tokens, settings),
            stages=dict(self.timers.stages),
            predictions=Predictions.of(predicted, len(tokens)),
        )

    def _patches(self, settings: Settings, patches: int) -> Iterator[Tensor]:
        options: dict[str, Any] = {
            "steps": settings.steps,
            "guidance": settings.guidance,
            "noise": self._noise(settings, patches),
        }
        if isinstance(self.model, BitDance):
            classes = torch.tensor([image.class_id for image in settings.images])
            return self.model.sample_patches(classes, schedule=settings.guidance_schedule, **options)
        sides = [[image.conditional for image in settings.images]]
        if settings.guidance > 1:
            sides.append([image.unconditional for image in settings.images])
        grid = (settings.size.grid_height, settings.size.grid_width)
        return self.model.sample_patches([torch.tensor(rows) for rows in sides], grid, **options)

    def _noise(self, settings: Settings, patches: int) -> Iterator[Tensor]:
        model = self.bundle.model
        draw = ImageNoise([i.seed for i in settings.images], settings.steps, (model.tokens_per_step, model.bits))
        for patch in range(patches):
            yield from torch.from_numpy(draw(patch, self._apart(settings, patch)))

    def _apart(self, settings: Settings, patch: int) -> bool:
        whole = settings.size.patches
        scale = patch_guidance(settings.guidance, settings.guidance_schedule, patch, whole)
        return settings.guidance > 1 and scale == 1

    def _pixels(self, tokens: np.ndarray, settings: Settings) -> np.ndarray:
        size, model = settings.size, self.bundle.model
        shape = (len(tokens), size.patches_down, size.patches_across, model.patch_side**2, model.bits)
        noise = None
        if model.decoder_noise:
            draws = [normals(i.seed, Stream.DECODER, 0, 1, (size.tokens, model.bits))[0] for i in settings.images]
            noise = torch.from_numpy(np.stack(draws)).view(shape)
        return self.decode(torch.from_numpy(padded(tokens, self.bundle)).view(shape), noise).numpy()

    def _time_stages(self, inside_head: bool) -> None:
        model, wrap = self.model, self.timers.wrap
        wrap(self.decode, "forward", "decoder")
        wrap(model.head, "forward", "head")
        wrap(model.backbone, "hidden", "backbone")
        if inside_head:
            wrap(model.head, "modulate", "modulation")
            wrap(model.head.time_embed, "forward", "time")
        embeds_tokens = model.backbone if isinstance(model, BitDance) else model
        wrap(model.backbone, "embed_classes" if isinstance(model, BitDance) else "embed_tokens", "prompt")
        wrap(embeds_tokens, "embed_tokens", "tokens")


class StageTimers:
    """Takes the wall time of functions, each without that of the timed functions that it calls."""

    def __init__(self) -> None:
        self.stages: dict[str, StageSeconds] = {}
        self._inner = [0.0]

    def wrap(self, owner: object, name: str, stage: str) -> None:
        """Time ``owner.name`` as ``stage``."""
        if isinstance(getattr(owner, name), nn.Module):
            owner, name = getattr(owner, name), "forward"
        function = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            started = perf_counter()
            result = function(*args, **options)
            spent = perf_counter() - started
            inner = self._inner.pop()
            self._inner[-1] += spent
            entry = self.stages.setdefault(stage, StageSeconds())
            entry.launches += 1
            entry.seconds += spent - inner
            return result

        setattr(owner, name, timed)


def _load(checkpoint: str) -> BitDance | TextToImage:
    return load_text_to_image(checkpoint) if is_text_to_image(checkpoint) else load_generator(checkpoint)
