"""Step 5, measure: what a calibrated bundle lost against the one it was made of, in stages, bits, images and bytes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bitdance_edge.calibration.choose import Chosen
from bitdance_edge.calibration.graphs import Layer
from bitdance_edge.calibration.record import DataSet
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.calibration.trials import Trial, decoded
from bitdance_edge.evaluation.similarity import mean_ssim
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, StageName
from bitdance_edge.runtime.memory_plan import plan_memory
from bitdance_edge.runtime.quality import psnr

PIXEL_SCALE = 255.0


@dataclass(frozen=True)
class StageLoss:
    """Error of one stage's outputs on held-out inputs.

    ``relative`` is the root mean square error over the root mean square of the output, ``largest`` the largest error
    over the largest value (pixels: 255); of an output of bits both are the share that flipped.
    """

    relative: float
    largest: float


@dataclass(frozen=True)
class BitLoss:
    """Shares of flipped bits of generated images: under teacher forcing and in free generation, in total and by patch.

    ``bits`` is the number of bits that were compared.
    """

    bits: int
    forced: float
    free: float
    forced_by_patch: list[float]
    free_by_patch: list[float]


@dataclass(frozen=True)
class ImageLoss:
    """Images of the calibrated bundle against those of the reference, with the same noise.

    ``psnr`` in dB from the mean squared error over all images, None where all are identical; ``ssim`` the mean over
    images; ``decoder_psnr`` and ``decoder_ssim`` of the same tokens through both decoders.
    """

    images: int
    identical: int
    psnr: float | None
    ssim: float
    decoder_psnr: float | None
    decoder_ssim: float


@dataclass(frozen=True)
class StageSize:
    """Bytes of a stage before and after; ``bytes_as_exported`` are those of weights that are not quantised."""

    precision: str
    bytes_before: int
    bytes: int
    bytes_as_exported: int


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What was lost.

    Attributes:
        stages: of those that are quantised.
        bits_by_stage: stage of the generator -> share of bits that flip where it alone is quantised.
        memory: bytes that one image takes before and after, as planned: weights, cache, tensors, activations.
    """

    stages: Mapping[str, StageLoss]
    bits_by_stage: Mapping[str, float]
    bits: BitLoss
    images: ImageLoss
    sizes: Mapping[str, StageSize]
    memory: tuple[int, int]


def measure(
    reference: BundleSessions, calibrated: BundleSessions, chosen: Chosen, held_out: DataSet, trial: Trial
) -> tuple[Losses, dict[str, np.ndarray]]:
    """Measure all losses, on images that neither the scales nor a search has seen.

    Args:
        held_out: inputs of the stages.
        trial: generations for bits and images.

    Returns:
        The losses, and the trial's pixels uint8 ``[images, H, W, 3]`` by the names ``reference`` and ``calibrated``.
    """
    bundles = reference.bundle, calibrated.bundle
    changed = [name for name, stage in bundles[0].stages.items() if stage.precision != bundles[1].stage(name).precision]
    stages = {name: stage_loss(reference, calibrated, held_out, name) for name in changed}
    bits, images, pixels = _bit_and_image_loss(calibrated, trial)
    before, after = (plan_memory(bundle, 1).held for bundle in bundles)
    losses = Losses(
        stages=stages,
        bits_by_stage=_bits_by_stage(chosen, trial),
        bits=bits,
        images=images,
        sizes=_sizes(*bundles, [chosen.layers[name] for name in chosen.formats]),
        memory=(before, after),
    )
    return losses, pixels


def stage_loss(reference: BundleSessions, calibrated: BundleSessions, data: DataSet, stage: str) -> StageLoss:
    """Measure the error of one stage's outputs on recorded inputs."""
    runs = reference.run(stage), calibrated.run(stage)
    outputs = runs[0].outputs
    sums, largest, scale = np.zeros(2), 0.0, 0.0
    bits = stage == StageName.ENCODER
    for sample in data.samples(stage):
        for want, got in zip(*(sample.replay(run, outputs) for run in runs), strict=True):
            want, got = want.astype(np.float64), got.astype(np.float64)
            error = (want != got).astype(np.float64) if bits else got - want
            sums += np.square(error).sum(), want.size if bits else np.square(want).sum()
            largest = max(largest, float(np.abs(error).max()))
            scale = max(scale, PIXEL_SCALE if stage == StageName.DECODER else float(np.abs(want).max()))
    share = float(sums[0] / sums[1]) if sums[1] else 0.0
    return StageLoss(share, share) if bits else StageLoss(share**0.5, largest / (scale or 1.0))


def _bit_and_image_loss(calibrated: BundleSessions, trial: Trial) -> tuple[BitLoss, ImageLoss, dict[str, np.ndarray]]:
    replaced = {name: calibrated[name] for name in LOOP_STAGES}
    forced, free = trial.forced(replaced), trial.free(replaced)
    flipped = [(outcome.bits != trial.reference.bits).mean(axis=(0, 2, 3)) for outcome in (forced, free)]
    bits = BitLoss(
        bits=trial.bits,
        forced=float(flipped[0].mean()),
        free=float(flipped[1].mean()),
        forced_by_patch=[float(share) for share in flipped[0]],
        free_by_patch=[float(share) for share in flipped[1]],
    )
    want = decoded(trial.sessions, trial.reference.tokens, trial.draw)
    got, same_tokens = (decoded(calibrated, made.tokens, trial.draw) for made in (free, trial.reference))
    images = ImageLoss(
        images=len(want),
        identical=int((want == got).all(axis=(1, 2, 3)).sum()),
        psnr=_psnr(want, got),
        ssim=mean_ssim(want, got),
        decoder_psnr=_psnr(want, same_tokens),
        decoder_ssim=mean_ssim(want, same_tokens),
    )
    return bits, images, {"reference": want, "calibrated": got}


def _bits_by_stage(chosen: Chosen, trial: Trial) -> dict[str, float]:
    alone = {stage: formats for stage in LOOP_STAGES if (formats := chosen.formats_of([stage]))}
    return {stage: trial.forced_flips(chosen.variants.sessions(formats)) for stage, formats in alone.items()}


def _sizes(reference: Bundle, calibrated: Bundle, quantised: Iterable[Layer]) -> dict[str, StageSize]:
    gone: dict[str, int] = {}
    for layer in quantised:
        gone[layer.stage] = gone.get(layer.stage, 0) + layer.weight_bytes
    return {
        name: StageSize(
            precision=calibrated.stages[name].precision,
            bytes_before=stage.bytes,
            bytes=calibrated.stages[name].bytes,
            bytes_as_exported=stage.bytes - gone.get(name, 0),
        )
        for name, stage in reference.stages.items()
    }


def _psnr(want: np.ndarray, got: np.ndarray) -> float | None:
    found = psnr(want, got)
    return None if found == float("inf") else found  # JSON has no infinity
