"""Every exported stage, run by ONNX Runtime on the inputs of a real generation, against PyTorch.

PyTorch (``model/``, float32, the plain path) generates the first patches; each exported stage gets the inputs that
PyTorch's had, so that an error is that of one stage alone.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitdance_edge.export.check_parts import IMAGES, CheckedBackbone, CheckedHead, CheckedPrompt
from bitdance_edge.export.check_window import check_window
from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.exported_stages import ExportedStages
from bitdance_edge.export.finite import first_not_finite
from bitdance_edge.export.stage_error import StageError
from bitdance_edge.export.stages import Exported, Generator
from bitdance_edge.model.backbone import GrowingCache
from bitdance_edge.model.order import latent_to_patches, patches_to_latent
from bitdance_edge.model.sampler import patch_guidance
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes, quantize
from bitdance_edge.model.tokenizer_model import TokenizerModel
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.sampler import Schedule

RANDOM_TOKENS = 1000  # different ones that a tokenizer alone is compared on, repeated over the image
STEPS = 4  # sampling steps of the generation that is compared
PATCHES = 3


@torch.no_grad()
def check_stages(
    model: Exported, folder: Path, stages: dict[str, StageSpec], precision: str, note: Callable[[str], object]
) -> dict[str, StageError]:
    """Compare every stage and return the errors by stage; ``note`` is told what is being compared.

    Raises:
        ExportError: a stage is off by more than its tolerance, or PyTorch's own output is not finite.
    """
    errors = {name: StageError.of(name, precision) for name in stages}
    exported = ExportedStages(folder, stages)
    generation = torch.Generator().manual_seed(0)
    with first_not_finite(model) as modules:
        try:
            note("check prompt to tokens")
            if isinstance(model, TokenizerModel):
                tokens = _drawn(model, generation)
            else:
                tokens = _check_generation(model, exported, errors, generation)
                check_window(model, exported, errors, generation)
            exported.unload()
            note("check decoder and encoder")
            _check_images(model, exported, errors, tokens, generation)
        except ExportError as error:
            raise ExportError(
                f"{error}. The first module with such values is {modules[0]}" if modules else str(error)
            ) from None
    failed = [
        f"{name} {error.worst:.2e} (allowed {error.tolerance:.0e})"
        for name, error in errors.items()
        if not error.passed
    ]
    if failed:
        raise ExportError(f"exported stages differ from PyTorch: {', '.join(failed)}; nothing was written")
    return errors


def _drawn(model: TokenizerModel, generation: torch.Generator) -> Tensor:
    """Bits by chance for a tokenizer alone, ``[1, RANDOM_TOKENS, C]``."""
    return quantize(torch.randn(1, RANDOM_TOKENS, model.config.bits, generator=generation))


def _check_generation(
    model: Generator, exported: ExportedStages, errors: dict[str, StageError], generation: torch.Generator
) -> Tensor:
    """Compare all stages that make tokens, over the first K patches; return their bits ``[B, K*P, C]``."""
    config = model.config
    schedule = Schedule.euler_maruyama(STEPS, config.time_shift)
    (time_table,) = exported.run(StageName.TIME, {"times": schedule.times})
    errors[StageName.TIME].compare(time_table, model.head.time_embed(torch.from_numpy(schedule.times)).numpy())
    prompt = CheckedPrompt.of(model)
    streams = [(GrowingCache(config.tokens_per_step), model.embed_prompt(ids)) for ids in prompt.streams]
    embedded = model.embed_prompt(torch.from_numpy(prompt.ids)).numpy()
    (got,) = exported.run(StageName.PROMPT, {exported.stages[StageName.PROMPT].inputs[0].name: prompt.ids})
    errors[StageName.PROMPT].compare(got, embedded)
    fast, patches = CheckedBackbone(model, exported, prompt.padding), []
    for patch in range(min(PATCHES, prompt.patches)):
        place = prompt.place(patch)
        hidden = torch.cat([cache.step(model.backbone, rows) for cache, rows in streams])
        hidden = hidden + model.position_term(*place.values())
        condition = model.head.cond_embed(hidden)
        errors[StageName.BACKBONE].compare(fast.step(embedded, place), condition.numpy())
        guidance = patch_guidance(config.sampling.guidance, config.sampling.guidance_schedule, patch, prompt.patches)
        draws = IMAGES if guidance > 1 else prompt.rows
        noise = torch.randn(STEPS + 1, draws, config.tokens_per_step, config.bits, generator=generation)
        head = CheckedHead(model, exported, hidden, condition, schedule, time_table)
        x = head.sample(noise, guidance, errors)
        rows = np.arange(prompt.rows) % draws
        feeds = {"x": x.numpy(), "rows": rows}
        token_place = {name: value for name, value in place.items() if exported.takes(StageName.TOKENS, name)}
        bits, got = exported.run(
            StageName.TOKENS, {**feeds, **{name: value.numpy() for name, value in token_place.items()}}
        )
        embeddings = model.embed_tokens(quantize(x)[torch.from_numpy(rows)], *token_place.values())
        embedded = embeddings.numpy()
        errors[StageName.TOKENS].compare(bits, quantize(x).numpy())
        errors[StageName.TOKENS].compare(got, embedded)
        streams = [(cache, part) for (cache, _), part in zip(streams, embeddings.chunk(len(streams)), strict=True)]
        patches.append(quantize(x)[:IMAGES])
    return torch.cat(patches, dim=1)


def _check_images(
    model: Exported,
    exported: ExportedStages,
    errors: dict[str, StageError],
    tokens: Tensor,
    generation: torch.Generator,
) -> None:
    """Compare the decoder on the generated bits, repeated to a whole image, and the encoder on the image it makes."""
    config, (height, width) = model.config, model.config.sizes[0]
    grid = height // config.tokenizer.downsampling, width // config.tokenizer.downsampling
    count, side = grid[0] * grid[1], model.patch_side
    shape = (grid[0] // side, grid[1] // side, side * side)
    whole = tokens.repeat(1, -(-count // tokens.shape[1]), 1)[:, :count].unflatten(1, shape)
    feeds, noise = {"tokens": whole.numpy()}, None
    if config.tokenizer.gan_decoder:
        patches = torch.randn(whole.shape, generator=generation)
        feeds["noise"], noise = patches.numpy(), patches_to_latent(patches, side)
    decoded = model.tokenizer.decode(patches_to_latent(whole, side), noise)
    errors[StageName.DECODER].require_finite(decoded.numpy())
    pixels = image_to_bytes(decoded)
    errors[StageName.DECODER].compare(exported.run(StageName.DECODER, feeds)[0], pixels.numpy(), scale=255)
    latent = latent_to_patches(model.tokenizer.encoder(image_from_bytes(pixels)), side)
    errors[StageName.ENCODER].require_finite(latent.numpy())
    (bits,) = exported.run(StageName.ENCODER, {"pixels": pixels.numpy()})
    # A bit may only differ where the latent is next to zero: the error of a wrong bit is how far from zero it was.
    distance = torch.where(torch.from_numpy(bits) == quantize(latent), 0.0, latent.abs())
    errors[StageName.ENCODER].compare(distance.numpy(), np.zeros(distance.shape), scale=float(latent.abs().max()))
