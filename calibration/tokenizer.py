"""Calibration of a tokenizer alone: scales from pictures of the user's, and what was lost on others of them.

A tokenizer generates nothing, so that its stages are recorded on pictures: each is encoded, and its tokens decoded.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.choose import choose, require_kept
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import StageGraph
from bitdance_edge.calibration.measure import StageLoss, stage_loss
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.record import DataSet, Recorder, image_file
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.calibration.write import FOLDER, replacing, require_place, write_bundle, write_errors, writing
from bitdance_edge.evaluation.similarity import mean_ssim
from bitdance_edge.runtime import load_pixels
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import RECORDINGS, Bundle
from bitdance_edge.runtime.quality import psnr

STEPS = 1  # a tokenizer has none; samples of its stages belong to no sampling time


@dataclass(frozen=True, kw_only=True)
class TokenizerLosses:
    """What a calibrated tokenizer lost on held-out pictures.

    Attributes:
        flipped_bits: share of the tokens' bits that differ from those of the tokenizer as exported.
        psnr_db, ssim: of reconstructions compared with the pictures, (as exported, calibrated).
        stages: errors of each stage alone.
        bytes: of the stages, (as exported, calibrated).
    """

    pictures: int
    flipped_bits: float
    psnr_db: tuple[float, float]
    ssim: tuple[float, float]
    stages: dict[str, StageLoss]
    bytes: tuple[int, int]

    def summary(self) -> list[str]:
        before, after = self.psnr_db
        return [
            f"{100 * self.flipped_bits:.2f} % of the bits of {self.pictures} held-out pictures flip",
            f"PSNR of reconstructions {before:.2f} -> {after:.2f} dB, SSIM {self.ssim[0]:.3f} -> {self.ssim[1]:.3f}",
            f"stages {self.bytes[0] / 1e6:.1f} -> {self.bytes[1] / 1e6:.1f} MB",
        ]


def calibrate_tokenizer(
    bundle: Bundle,
    folder: Path,
    recipe: CalibrationRecipe,
    files: Sequence[Path],
    *,
    held_out: int,
    threads: int | None,
    force: bool,
) -> TokenizerLosses:
    """Write a calibrated copy of a tokenizer's bundle, with its report.

    Args:
        files: pictures of any size: ``recipe.draw.images`` for the scales, then ``held_out`` for the losses.

    Raises:
        CalibrationError: there are too few pictures, nothing to calibrate, or ``folder`` exists.
        RequestError: a picture cannot be read.
        StorageError: ``folder`` or the recordings cannot be written.
    """
    recipe.require_stages(bundle)
    require_place(folder, bundle, force=force)
    count = recipe.draw.images
    if len(files) < count + held_out:
        raise CalibrationError(
            f"there are {len(files)} pictures, and {count} for the scales (--images) and {held_out} for the losses "
            "(--held-out) are asked for: give more pictures, or ask for fewer"
        )
    graphs = {stage: StageGraph.read(bundle, stage) for stage in recipe.precisions}
    require_kept(recipe, graphs)
    size = recipe.draw.image_size(bundle.model)
    pictures = np.stack([load_pixels(file, size.height, size.width) for file in files[: count + held_out]])
    sessions, data = BundleSessions(bundle, threads), bundle.folder / RECORDINGS
    chosen = choose(graphs, recipe, record_pictures(sessions, pictures[:count], data), None, threads)
    seen = pictures[count:]
    with replacing(folder, force=force) as staged:
        written = write_bundle(bundle, staged, recipe, chosen)
        losses = _losses(sessions, BundleSessions(written, threads), seen, record_pictures(sessions, seen, data))
        write_errors(written, losses.stages)
        with writing(folder):
            report = json.dumps(asdict(losses), indent=1) + "\n"
            (staged / FOLDER / "report.json").write_text(report, encoding="utf-8")
            (staged / FOLDER / "report.md").write_text(_markdown(written, losses), encoding="utf-8")
    return losses


def record_pictures(sessions: BundleSessions, pictures: np.ndarray, folder: Path) -> DataSet:
    """Record encoder and decoder on pictures uint8 ``[n, H, W, 3]``; those that are recorded already are kept."""
    key = hashlib.sha256(sessions.bundle.digest.encode() + pictures.tobytes()).hexdigest()[:12]
    place, recorder = folder / f"pictures-{key}", Recorder(sessions.bundle.stages, STEPS)
    for number, pixels in enumerate(tqdm(pictures, desc="record", unit="image", leave=False, disable=None)):
        file = image_file(place, number)
        if file.is_file():
            continue
        recorder.start(number)
        with sessions.pipeline(1, before=recorder.note) as pipeline:
            pipeline.reconstruct(pixels)
        with written_whole(file) as content:
            np.savez(content, **recorder.arrays)  # type: ignore[arg-type]
    return DataSet(place, len(pictures), STEPS, sessions.bundle.stages)


def _losses(
    reference: BundleSessions, calibrated: BundleSessions, pictures: np.ndarray, data: DataSet
) -> TokenizerLosses:
    tokens, rebuilt = [], []
    for sessions in (reference, calibrated):
        with sessions.pipeline(1) as pipeline:
            tokens.append(np.concatenate([pipeline.tokenize(one) for one in pictures]))
            rebuilt.append(np.concatenate([pipeline.reconstruct(one) for one in pictures]))
    bundles = reference.bundle, calibrated.bundle
    changed = [name for name, stage in bundles[0].stages.items() if stage.precision != bundles[1].stage(name).precision]
    before, after = (float(np.mean([psnr(*pair) for pair in zip(pictures, made, strict=True)])) for made in rebuilt)
    return TokenizerLosses(
        pictures=len(pictures),
        flipped_bits=float((tokens[0] != tokens[1]).mean()),
        psnr_db=(before, after),
        ssim=(mean_ssim(pictures, rebuilt[0]), mean_ssim(pictures, rebuilt[1])),
        stages={name: stage_loss(reference, calibrated, data, name) for name in changed},
        bytes=(_bytes(bundles[0]), _bytes(bundles[1])),
    )


def _bytes(bundle: Bundle) -> int:
    return sum(stage.bytes for stage in bundle.stages.values())


def _markdown(bundle: Bundle, losses: TokenizerLosses) -> str:
    lines = [f"# {bundle.name}", "", *(f"- {line}" for line in losses.summary()), ""]
    lines += ["| stage | precision | error, root mean square | largest |", "|---|---|---|---|"]
    for name, loss in losses.stages.items():
        lines.append(f"| {name} | {bundle.stage(name).precision} | {loss.relative:.2e} | {loss.largest:.2e} |")
    return "\n".join([*lines, "", "The encoder's errors are shares of bits that flip.", ""])
