"""Every exported stage, run by ONNX Runtime on the inputs of a real generation, against PyTorch.

PyTorch (``model/``, float32, the plain path) generates the first patches; at every point the exported stage gets what
PyTorch had there, so that an error is that of one stage alone.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.signatures import cache_slots
from bitdance_edge.export.stages import Generator
from bitdance_edge.export.widen import widened
from bitdance_edge.model import TextToImage
from bitdance_edge.model.backbone import GrowingCache
from bitdance_edge.model.order import latent_to_patches, patches_to_latent
from bitdance_edge.model.sampler import patch_guidance, sample_patch
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes, quantize
from bitdance_edge.runtime.attention import AttentionWindow
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.sampler import Schedule

STEPS = 4  # sampling steps of the generation that is compared
PATCHES = 3
IMAGES = 2
# Largest error relative to the stage's largest value. float32 leaves room for another order of summation; the half
# precisions for their rounding, which grows through layers and sampling steps.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# Pixels differ by whole levels: by one where a value lies on the edge between two, by more where precision is low.
PIXEL_TOLERANCES = {"fp32": 1 / 255, "fp16": 8 / 255, "bf16": 24 / 255}


@dataclass
class StageError:
    """Largest error seen, relative to the largest value of the stage's output (of pixels: to 255)."""

    tolerance: float
    worst: float = 0.0

    def compare(self, got: np.ndarray, want: np.ndarray, scale: float | None = None) -> None:
        if got.shape != want.shape or not np.isfinite(got.astype(np.float64)).all():
            self.worst = float("inf")
            return
        error = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
        self.worst = max(self.worst, float(error / (scale or np.abs(want).max() or 1.0)))


class ExportedStages:
    """The exported graphs as functions of numpy arrays, loaded when first called and let go when another is."""

    def __init__(self, folder: Path, stages: dict[str, StageSpec]) -> None:
        self.folder, self.stages = folder, stages
        self.sessions: dict[str, ort.InferenceSession] = {}

    def run(self, stage: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        spec = self.stages[stage]
        if stage not in self.sessions:
            self.sessions[stage] = self._open(spec)
        dtypes = {tensor.name: tensor.dtype.replace("bfloat16", "float32") for tensor in spec.inputs}
        outputs = self.sessions[stage].run(None, {name: values.astype(dtypes[name]) for name, values in feeds.items()})
        return [np.asarray(output) for output in outputs]

    def takes(self, stage: str, name: str) -> bool:
        """Whether a stage has an input of this name."""
        return any(tensor.name == name for tensor in self.stages[stage].inputs)

    def _open(self, spec: StageSpec) -> ort.InferenceSession:
        path = self.folder / spec.graph.path
        options = ort.SessionOptions()
        options.log_severity_level = 3
        source = widened(path) if spec.precision == "bf16" else str(path)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def check_stages(
    model: Generator, folder: Path, stages: dict[str, StageSpec], precision: str, note: Callable[[str], object]
) -> dict[str, StageError]:
    """Compare every stage; the errors by stage. ``note`` is told what is being compared.

    Raises:
        ExportError: a stage is off by more than its tolerance.
    """
    errors = {
        name: StageError(PIXEL_TOLERANCES[precision] if name == "decoder" else TOLERANCES[precision]) for name in stages
    }
    exported = ExportedStages(folder, stages)
    generation = torch.Generator().manual_seed(0)
    note("check prompt to tokens")
    tokens = _check_generation(model, exported, errors, generation)
    note("check decoder and encoder")
    _check_images(model, exported, errors, tokens, generation)
    failed = [
        f"{name} {error.worst:.2e} (allowed {error.tolerance:.0e})"
        for name, error in errors.items()
        if not error.worst <= error.tolerance
    ]
    if failed:
        raise ExportError(f"exported stages differ from PyTorch: {', '.join(failed)}; nothing was written")
    return errors


def _check_generation(
    model: Generator, exported: ExportedStages, errors: dict[str, StageError], generation: torch.Generator
) -> Tensor:
    """Prompt, time, backbone, modulation, head and tokens over the first patches; the tokens ``[B, K*P, C]``."""
    config = model.config
    schedule = Schedule.euler_maruyama(STEPS, config.time_shift)
    (time_table,) = exported.run("time", {"times": schedule.times})
    errors["time"].compare(time_table, model.head.time_embed(torch.from_numpy(schedule.times)).numpy())
    prompt = CheckedPrompt.of(model)
    streams = [(GrowingCache(config.tokens_per_step), model.embed_prompt(ids)) for ids in prompt.streams]
    embedded = model.embed_prompt(torch.from_numpy(prompt.ids)).numpy()
    (got,) = exported.run("prompt", {exported.stages["prompt"].inputs[0].name: prompt.ids})
    errors["prompt"].compare(got, embedded)
    fast, patches = CheckedBackbone(model, exported, prompt.padding), []
    for patch in range(min(PATCHES, prompt.patches)):
        place = prompt.place(patch)
        hidden = torch.cat([cache.step(model.backbone, rows) for cache, rows in streams])
        hidden = hidden + model.position_term(*place.values())
        condition = model.head.cond_embed(hidden)
        errors["backbone"].compare(fast.step(embedded, place), condition.numpy())
        guidance = patch_guidance(config.sampling.guidance, config.sampling.guidance_schedule, patch, prompt.patches)
        draws = IMAGES if guidance > 1 else prompt.rows
        noise = torch.randn(STEPS + 1, draws, config.tokens_per_step, config.bits, generator=generation)
        head = CheckedHead(model, exported, hidden, condition, schedule, time_table)
        x = head.sample(noise, guidance, errors)
        rows = np.arange(prompt.rows) % draws
        feeds = {"x": x.numpy(), "rows": rows}
        token_place = {name: value for name, value in place.items() if exported.takes("tokens", name)}
        bits, got = exported.run("tokens", {**feeds, **{name: value.numpy() for name, value in token_place.items()}})
        embeddings = model.embed_tokens(quantize(x)[torch.from_numpy(rows)], *token_place.values())
        embedded = embeddings.numpy()
        errors["tokens"].compare(bits, quantize(x).numpy())
        errors["tokens"].compare(got, embedded)
        streams = [(cache, part) for (cache, _), part in zip(streams, embeddings.chunk(len(streams)), strict=True)]
        patches.append(quantize(x)[:IMAGES])
    return torch.cat(patches, dim=1)


@dataclass(frozen=True)
class CheckedPrompt:
    """A guided prompt: as PyTorch takes it, rows of one length at a time, and as the exported stages do, in one batch.

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
        """Any ids do: the longest prompt that there is room for, and a short one."""
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
        """Where a patch stands, as inputs of the stages."""
        across = {"patches_across": torch.tensor([self.patches_across])} if self.patches_across else {}
        return {"patch_index": torch.tensor([patch]), **across}


class CheckedBackbone:
    """The exported backbone with its cache, fed with PyTorch's embeddings."""

    def __init__(self, model: Generator, exported: ExportedStages, padding: np.ndarray) -> None:
        self.model, self.config, self.exported, self.padding = model, model.config, exported, padding
        self.position = 0
        self.cache = {
            tensor.name: np.zeros(tensor.sized({"R": len(padding)}), np.float32)
            for tensor in exported.stages["backbone"].inputs
            if tensor.name.startswith("past_key_values.")
        }

    def step(self, embeddings: np.ndarray, place: dict[str, Tensor]) -> np.ndarray:
        length = embeddings.shape[1]
        window = AttentionWindow(self.config.tokens_per_step, cache_slots(self.model), self.padding)
        condition, *cache = self.exported.run(
            "backbone",
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
        """Of all evaluations at once, compared with PyTorch's."""
        feeds = {"time_embeddings": self.time_table, "condition": self.condition.numpy()}
        got = self.exported.run("modulation", feeds)
        expected = self.model.head.modulate(torch.from_numpy(self.time_table)[:, None, None] + self.condition)
        for part, want in zip(got, expected, strict=True):
            error.compare(part, want.numpy())
        return {tensor.name: part for tensor, part in zip(self.exported.stages["modulation"].outputs, got, strict=True)}

    def sample(self, noise: Tensor, guidance: float, errors: Mapping[str, StageError]) -> Tensor:
        """PyTorch's prediction of the patch; each exported step is compared with the state that PyTorch reached."""
        states: list[Tensor] = []

        def predict(x: Tensor, times: Tensor) -> Tensor:
            states.append(x[: noise.shape[1]])
            return self.model.head(x, times, self.hidden)

        x = sample_patch(predict, self._draws(noise), STEPS, self.model.config.time_shift, guidance)
        states.append(x)
        modulations = self._modulations(errors["modulation"])
        for k in range(STEPS + 1):
            (got,) = self.exported.run(
                "head",
                {
                    "x": states[k].numpy(),
                    **{name: table[k] for name, table in modulations.items()},
                    "coefficients": self.schedule.coefficients[k],
                    "guidance": np.array([guidance]),
                    "noise": noise[min(k + 1, STEPS)].numpy(),
                    "rows": np.arange(self.condition.shape[0]) % noise.shape[1],
                },
            )
            errors["head"].compare(got, states[k + 1].numpy())
        return x

    @staticmethod
    def _draws(noise: Tensor) -> Iterator[Tensor]:
        yield from noise


def _check_images(
    model: Generator,
    exported: ExportedStages,
    errors: dict[str, StageError],
    tokens: Tensor,
    generation: torch.Generator,
) -> None:
    """Decoder on the generated tokens (repeated to a whole image), encoder on what the decoder made of them."""
    config, (height, width) = model.config, model.config.sizes[0]
    grid = height // config.tokenizer.downsampling, width // config.tokenizer.downsampling
    count, side = grid[0] * grid[1], model.patch_side
    shape = (grid[0] // side, grid[1] // side, side * side)
    whole = tokens.repeat(1, -(-count // tokens.shape[1]), 1)[:, :count].unflatten(1, shape)
    feeds, noise = {"tokens": whole.numpy()}, None
    if config.tokenizer.gan_decoder:
        patches = torch.randn(whole.shape, generator=generation)
        feeds["noise"], noise = patches.numpy(), patches_to_latent(patches, side)
    pixels = image_to_bytes(model.tokenizer.decode(patches_to_latent(whole, side), noise))
    errors["decoder"].compare(exported.run("decoder", feeds)[0], pixels.numpy(), scale=255)
    latent = latent_to_patches(model.tokenizer.encoder(image_from_bytes(pixels)), side)
    (bits,) = exported.run("encoder", {"pixels": pixels.numpy()})
    # A bit may only differ where the latent is next to zero: the error of a wrong bit is how far from zero it was.
    distance = torch.where(torch.from_numpy(bits) == quantize(latent), 0.0, latent.abs())
    errors["encoder"].compare(distance.numpy(), np.zeros(distance.shape), scale=float(latent.abs().max()))
