"""What a calibrated bundle lost, against the one it was made of: stages, bits, images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bitdance_edge.calibration.recording import DataSet, Draw
from bitdance_edge.calibration.stage_run import StageRun
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.pipeline import Pipeline

SSIM_WINDOW = 7  # pixels, the library's default


@dataclass(frozen=True)
class StageLoss:
    """Error of one stage's outputs on held-out inputs.

    ``relative`` is the root mean square error over the root mean square of the output, ``largest`` the largest error
    over the largest value (pixels: 255); of an output of bits both are the share that turned.
    """

    relative: float
    largest: float


def stage_losses(reference: Bundle, quantized: Bundle, data: DataSet, threads: int | None) -> dict[str, StageLoss]:
    """Every stage that is not as exported, on the recorded inputs of held-out images."""
    changed = [
        name for name in reference.stages if reference.stages[name].precision != quantized.stages[name].precision
    ]
    losses = {}
    for name in changed:
        outputs = [tensor.name for tensor in reference.stage(name).outputs if not tensor.name.startswith("present.")]
        runs = [StageRun(bundle, name, load(bundle, name, threads)) for bundle in (reference, quantized)]
        sums, largest, scale = np.zeros(2), 0.0, 0.0
        bits = name == "encoder"
        for sample in data.samples(name):
            for want, got in zip(*(run(sample, outputs) for run in runs), strict=True):
                want, got = want.astype(np.float64), got.astype(np.float64)
                error = (want != got).astype(np.float64) if bits else got - want
                sums += np.square(error).sum(), want.size if bits else np.square(want).sum()
                largest = max(largest, float(np.abs(error).max()))
                scale = max(scale, 255.0 if name == "decoder" else float(np.abs(want).max()))
        share = float(sums[0] / sums[1]) if sums[1] else 0.0
        losses[name] = StageLoss(share, share) if bits else StageLoss(share**0.5, largest / (scale or 1.0))
    return losses


def load(bundle: Bundle, stage: str, threads: int | None) -> Any:
    """The session of a bundle's stage, its files checked."""
    return OnnxRuntimeBackend(bundle, threads).load(stage).session


@dataclass(frozen=True)
class BitLoss:
    """Bits of generated images that turned: under teacher forcing and in free generation, in all and patch by patch."""

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


def bit_and_image_loss(
    reference: Bundle, quantized: Bundle, trial: Trial, threads: int | None
) -> tuple[BitLoss, ImageLoss, Mapping[str, np.ndarray]]:
    """Both losses over one trial, and the pixels ``reference`` and ``quantized`` uint8 ``[images, H, W, 3]``."""
    sessions = {name: load(quantized, name, threads) for name in LOOP_STAGES}
    forced, free = trial.forced(sessions), trial.free(sessions)
    turned = [(outcome.bits != trial.reference.bits).mean(axis=(0, 2, 3)) for outcome in (forced, free)]
    bits = BitLoss(
        bits=trial.bits,
        forced=float(turned[0].mean()),
        free=float(turned[1].mean()),
        forced_by_patch=[float(share) for share in turned[0]],
        free_by_patch=[float(share) for share in turned[1]],
    )
    with Pipeline.open(reference.folder, device="cpu", threads=threads, max_batch=16) as pipeline:
        want = decoded(pipeline, trial.reference.tokens, trial.draw)
    with Pipeline.open(quantized.folder, device="cpu", threads=threads, max_batch=16) as pipeline:
        got, same_tokens = (decoded(pipeline, made.tokens, trial.draw) for made in (free, trial.reference))
    images = ImageLoss(
        images=len(want),
        identical=int((want == got).all(axis=(1, 2, 3)).sum()),
        psnr=psnr(want, got),
        ssim=ssim(want, got),
        decoder_psnr=psnr(want, same_tokens),
        decoder_ssim=ssim(want, same_tokens),
    )
    return bits, images, {"reference": want, "quantized": got}


def decoded(pipeline: Pipeline, tokens: np.ndarray, draw: Draw, batch: int = 16) -> np.ndarray:
    """Tokens ``[images, K, C]`` to pixels; of a part of an image, that part repeated over the whole."""
    shape = (draw.image_size(pipeline.bundle).tokens, pipeline.bundle.model.bits)
    whole = [np.resize(one, shape) for one in tokens]
    parts = [np.stack(whole[first : first + batch]) for first in range(0, len(whole), batch)]
    return np.concatenate([pipeline.decode(part, size=draw.size) for part in parts])


def psnr(want: np.ndarray, got: np.ndarray) -> float | None:
    return None if (want == got).all() else float(peak_signal_noise_ratio(want, got, data_range=255))


def ssim(want: np.ndarray, got: np.ndarray) -> float:
    return float(
        np.mean(
            [
                structural_similarity(one, other, win_size=SSIM_WINDOW, channel_axis=2, data_range=255)
                for one, other in zip(want, got, strict=True)
            ]
        )
    )
