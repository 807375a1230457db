"""Every exported stage, run by ONNX Runtime on the inputs of a real generation, against PyTorch.

PyTorch (``model/``, float32, the plain path) generates the first patches; at every point the exported stage gets what
PyTorch had there, so that an error is that of one stage alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.widen import widened
from bitdance_edge.model import BitDance
from bitdance_edge.model.backbone import GrowingCache, block_causal_mask
from bitdance_edge.model.sampler import patch_guidance, sample_patch
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes, quantize
from bitdance_edge.runtime.bundle import StageSpec
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

    def _open(self, spec: StageSpec) -> ort.InferenceSession:
        path = self.folder / spec.graph.path
        options = ort.SessionOptions()
        options.log_severity_level = 3
        source = widened(path) if spec.precision == "bf16" else str(path)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def check_stages(
    model: BitDance, folder: Path, stages: dict[str, StageSpec], precision: str, note: Callable[[str], object]
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
    model: BitDance, exported: ExportedStages, errors: dict[str, StageError], generation: torch.Generator
) -> Tensor:
    """Prompt, time, backbone, head and tokens over the first patches; the tokens ``[B, K*P, C]``."""
    config = model.config
    schedule = Schedule.euler_maruyama(STEPS, config.time_shift)
    (time_table,) = exported.run("time", {"times": schedule.times})
    errors["time"].compare(time_table, model.head.time_embed(torch.from_numpy(schedule.times)).numpy())
    classes = torch.arange(IMAGES) % config.num_classes
    class_ids = torch.cat([classes, torch.full_like(classes, config.num_classes)])
    embeddings = model.backbone.embed_classes(class_ids)
    errors["prompt"].compare(exported.run("prompt", {"class_ids": class_ids.numpy()})[0], embeddings.numpy())
    plain, fast = GrowingCache(config.tokens_per_step), CheckedBackbone(model, exported, len(class_ids))
    patches = []
    for patch in range(min(PATCHES, config.steps)):
        hidden = plain.step(model.backbone, embeddings) + model.backbone.position_term(torch.tensor([patch]))
        condition = model.head.cond_embed(hidden)
        errors["backbone"].compare(fast.step(embeddings, patch), condition.numpy())
        guidance = patch_guidance(config.sampling.guidance, config.sampling.guidance_schedule, patch, config.steps)
        draws = IMAGES if guidance > 1 else len(class_ids)
        noise = torch.randn(STEPS + 1, draws, config.tokens_per_step, config.bits, generator=generation)
        head = CheckedHead(model, exported, hidden, condition, schedule, time_table)
        x = head.sample(noise, guidance, errors["head"])
        rows = np.arange(len(class_ids)) % draws
        bits, embedded = exported.run("tokens", {"x": x.numpy(), "rows": rows})
        embeddings = model.backbone.embed_tokens(quantize(x)[torch.from_numpy(rows)])
        errors["tokens"].compare(bits, quantize(x).numpy())
        errors["tokens"].compare(embedded, embeddings.numpy())
        patches.append(quantize(x)[:IMAGES])
    return torch.cat(patches, dim=1)


class CheckedBackbone:
    """The exported backbone with its cache, fed with PyTorch's embeddings."""

    def __init__(self, model: BitDance, exported: ExportedStages, rows: int) -> None:
        self.config, self.exported, self.rows = model.config, exported, rows
        self.position = 0
        self.cache = {
            tensor.name: np.zeros(tensor.sized({"R": rows}), np.float32)
            for tensor in exported.stages["backbone"].inputs
            if tensor.name.startswith("past_key_values.")
        }

    def step(self, embeddings: Tensor, patch: int) -> np.ndarray:
        length, tokens = embeddings.shape[1], self.config.tokens_per_step
        mask = np.zeros((length, self.config.cache_length), bool)
        mask[:, : self.position] = True
        mask[:, self.position : self.position + length] = block_causal_mask(length - tokens, tokens, tokens).numpy()
        condition, *cache = self.exported.run(
            "backbone",
            {
                "embeddings": embeddings.numpy(),
                "positions": np.broadcast_to(self.position + np.arange(length), (self.rows, length)),
                "mask": np.broadcast_to(mask, (self.rows, 1, *mask.shape)),
                "cache_position": np.full(self.rows, self.position),
                "patch_index": np.array([patch]),
                **self.cache,
            },
        )
        self.cache = dict(zip(self.cache, cache, strict=True))
        self.position += length
        return condition


@dataclass
class CheckedHead:
    """The exported head, compared at every evaluation that PyTorch's sampler makes."""

    model: BitDance
    exported: ExportedStages
    hidden: Tensor
    condition: Tensor
    schedule: Schedule
    time_table: np.ndarray

    def sample(self, noise: Tensor, guidance: float, error: StageError) -> Tensor:
        """PyTorch's prediction of the patch; each exported step is compared with the state that PyTorch reached."""
        states: list[Tensor] = []

        def predict(x: Tensor, times: Tensor) -> Tensor:
            states.append(x[: noise.shape[1]])
            return self.model.head(x, times, self.hidden)

        x = sample_patch(predict, self._draws(noise), STEPS, self.model.config.time_shift, guidance)
        states.append(x)
        for k in range(STEPS + 1):
            (got,) = self.exported.run(
                "head",
                {
                    "x": states[k].numpy(),
                    "condition": self.condition.numpy(),
                    "time_embedding": self.time_table[k],
                    "coefficients": self.schedule.coefficients[k],
                    "guidance": np.array([guidance]),
                    "noise": noise[min(k + 1, STEPS)].numpy(),
                    "rows": np.arange(self.condition.shape[0]) % noise.shape[1],
                },
            )
            error.compare(got, states[k + 1].numpy())
        return x

    @staticmethod
    def _draws(noise: Tensor) -> Iterator[Tensor]:
        yield from noise


def _check_images(
    model: BitDance,
    exported: ExportedStages,
    errors: dict[str, StageError],
    tokens: Tensor,
    generation: torch.Generator,
) -> None:
    """Decoder on the generated tokens (repeated to a whole image), encoder on what the decoder made of them."""
    whole = tokens.repeat(1, -(-(model.config.grid**2) // tokens.shape[1]), 1)[:, : model.config.grid**2]
    feeds, noise = {"tokens": whole.numpy()}, None
    if model.config.tokenizer.gan_decoder:
        sequence = torch.randn(whole.shape, generator=generation)
        feeds["noise"], noise = sequence.numpy(), model.to_latent(sequence)
    pixels = image_to_bytes(model.tokenizer.decode(model.to_latent(whole), noise))
    errors["decoder"].compare(exported.run("decoder", feeds)[0], pixels.numpy(), scale=255)
    latent = model.to_sequence(model.tokenizer.encoder(image_from_bytes(pixels)))
    (bits,) = exported.run("encoder", {"pixels": pixels.numpy()})
    # A bit may only differ where the latent is next to zero: the error of a wrong bit is how far from zero it was.
    distance = torch.where(torch.from_numpy(bits) == quantize(latent), 0.0, latent.abs())
    errors["encoder"].compare(distance.numpy(), np.zeros(distance.shape), scale=float(latent.abs().max()))
