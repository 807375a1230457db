"""Many generated images for the judge, kept on disk batch by batch so that a long run can be stopped and goes on."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.recording import Draw
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.pipeline import Pipeline

BATCH = 16


def generated(bundle: Bundle, draw: Draw, folder: Path, threads: int | None) -> tuple[np.ndarray, list[int | None]]:
    """Pixels uint8 ``[images, H, W, 3]`` and the classes asked for, None where a prompt was."""
    key = hashlib.sha256(json.dumps([bundle.digest, asdict(draw)], sort_keys=True).encode()).hexdigest()[:12]
    place = folder / f"images-{key}"
    requests = list(draw.requests(bundle, BATCH))
    files = [place / f"batch-{number:05d}.npy" for number in range(len(requests))]
    with Pipeline.open(bundle.folder, device="cpu", threads=threads, max_batch=BATCH) as pipeline:
        for path, request in tqdm(
            list(zip(files, requests, strict=True)), desc=f"images of {bundle.name}", leave=False, disable=None
        ):
            if not path.is_file():
                tokens = np.stack([image.tokens for image in pipeline.generate(request)])
                with written_whole(path) as file:
                    np.save(file, pipeline.decode(tokens, size=draw.size), allow_pickle=False)
    classes = [image.class_id for request in requests for image in request.resolve(bundle).images]
    return np.concatenate([np.load(path, allow_pickle=False) for path in files]), classes
