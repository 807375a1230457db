"""Parts of the generation that the check compares: its prompt, the backbone with its cache, and the head's steps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitdance_edge.export.exported_stages import ExportedStages
from bitdance_edge.export.signatures import cache_slots
from bitdance_edge.export.stage_error import StageError
from bitdance_edge.export.stages import Generator
from bitdance_edge.model import TextToImage
from bitdance_edge.model.sampler import sample_patch
from bitdance_edge.runtime.attention import AttentionWindow
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.sampler import Schedule

IMAGES = 2


@dataclass(frozen=True)
class CheckedPrompt:
    """A guided prompt: for PyTorch rows of one length at a time, for the exported stages all rows in one batch.

    Text rows differ in length; those of the batch are padded on the left.
    """

    streams: list[Tensor]  # ids of rows that run together in PyTorch: [r] classes, or [r, T] text
    ids: np.ndarray  # all R rows
    padding: np.ndarray  # int64 [R]
    patches: int
    patches_across: int

    @classmethod
    def of(cls, model: Generator) -> "CheckedPrompt":
        if isinstance(model, TextToImage):
            return cls._text(model)
        classes = torch.arange(IMAGES) % model.config.num_classes
        rows = torch.cat([classes, torch.full_like(classes, model.config.num_classes)])
        return cls([rows], rows.numpy(), np.zeros(len(rows), np.int64), model.config.steps, 0)

    @classmethod
    def _text(cls, model: TextToImage) -> "CheckedPrompt":
        """Use any ids: the longest prompt that there is room for, and a short one."""
        config, (height, width) = model.config, model.config.sizes[0]
        ids = torch.arange(IMAGES * config.prompt_tokens).view(IMAGES, -1) % config.backbone.vocabulary
        short = ids[:, : config.tokens_per_step + 3]
        padded = torch.cat([torch.zeros_like(ids[:, short.shape[1] :]), short], dim=1)
        padding = np.repeat([0, ids.shape[1] - short.shape[1]], IMAGES)
        patches = config.tokens(height, width) // config.tokens_per_step
        return cls([ids, short], torch.cat([ids, padded]).numpy(), padding, patches, width // config.patch_pixels)

    @property
    def rows(self) -> int:
        return len(self.ids)

    def place(self, patch: int) -> dict[str, Tensor]:
        """Where a patch is in the image, as inputs of the stages."""
        across = {"patches_across": torch.tensor([self.patches_across])} if self.patches_across else {}
        return {"patch_index": torch.tensor([patch]), **across}


class CheckedBackbone:
    """The exported backbone with its cache, fed with PyTorch's embeddings."""

    def __init__(self, model: Generator, exported: ExportedStages, padding: np.ndarray) -> None:
        self.model, self.config, self.exported, self.padding = model, model.config, exported, padding
        self.position = 0
        self.cache = {
            tensor.name: np.zeros(tensor.sized({"R": len(padding)}), np.float32)
            for tensor in exported.stages[StageName.BACKBONE].inputs
            if tensor.name.startswith("past_key_values.")
        }

    def step(self, embeddings: np.ndarray, place: dict[str, Tensor]) -> np.ndarray:
        length = embeddings.shape[1]
        window = AttentionWindow(self.config.tokens_per_step, cache_slots(self.model), self.padding)
        condition, *cache = self.exported.run(
            StageName.BACKBONE,
            {
                "embeddings": embeddings,
                "positions": window.positions(self.position, length),
                "mask": window.mask(self.position, length),
                "cache_position": np.full(len(self.padding), self.position),
                **{name: value.numpy() for name, value in place.items()},
                **self.cache,
            },
        )
        self.cache = dict(zip(self.cache, cache, strict=True))
        self.position += length
        return condition


@dataclass
class CheckedHead:
    """The exported head, compared at every evaluation that PyTorch's sampler makes."""

    model: Generator
    exported: ExportedStages
    hidden: Tensor
    condition: Tensor
    schedule: Schedule
    time_table: np.ndarray

    def _modulations(self, error: StageError) -> dict[str, np.ndarray]:
        """Compute those of all evaluations at once, compared with PyTorch's."""
        feeds = {"time_embeddings": self.time_table, "condition": self.condition.numpy()}
        got = self.exported.run(StageName.MODULATION, feeds)
        expected = self.model.head.modulate(torch.from_numpy(self.time_table)[:, None, None] + self.condition)
        for part, want in zip(got, expected, strict=True):
            error.compare(part, want.numpy())
        return {
            tensor.name: part
            for tensor, part in zip(self.exported.stages[StageName.MODULATION].outputs, got, strict=True)
        }

    def sample(self, noise: Tensor, guidance: float, errors: Mapping[str, StageError]) -> Tensor:
        """Sample a patch with PyTorch ``[B, P, C]``; compare each exported step with the state that PyTorch reached."""
        steps, states = len(self.schedule.times) - 1, list[Tensor]()

        def predict(x: Tensor, times: Tensor) -> Tensor:
            states.append(x[: noise.shape[1]])
            return self.model.head(x, times, self.hidden)

        x = sample_patch(predict, self._draws(noise), steps, self.model.config.time_shift, guidance)
        states.append(x)
        modulations = self._modulations(errors[StageName.MODULATION])
        for k in range(steps + 1):
            (got,) = self.exported.run(
                StageName.HEAD,
                {
                    "x": states[k].numpy(),
                    **{name: table[k] for name, table in modulations.items()},
                    "coefficients": self.schedule.coefficients[k],
                    "guidance": np.array([guidance]),
                    "noise": noise[min(k + 1, steps)].numpy(),
                    "rows": np.arange(self.condition.shape[0]) % noise.shape[1],
                },
            )
            errors[StageName.HEAD].compare(got, states[k + 1].numpy())
        return x

    @staticmethod
    def _draws(noise: Tensor) -> Iterator[Tensor]:
        yield from noise
