"""Fast previews: a bundle's map from bits to pixels, fitted to its decoder on images that the bundle itself draws.

Random bits would need no generator, but make no images: fitted to them, the map of the shapes model was 4 dB worse.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from bitdance_edge.runtime import Pipeline
from bitdance_edge.runtime.bundle.manifest import Bundle, file_spec
from bitdance_edge.runtime.preview import WINDOW, PreviewMap
from bitdance_edge.runtime.prompt import PromptEncoder
from bitdance_edge.runtime.request import Request

FILE = "fast_preview.npy"
STEPS = 4  # sampling steps of the images, which need not be good
SEED = 0
SAMPLES = 4  # tokens for each unknown of the map
SMALL = 16 * 64 * 64  # pixels: small images are drawn until they have as many in total, MOST of them at most
MOST = 16
BATCH = 16
WORDS = 6  # of a prompt


def with_fast_previews(bundle: Bundle) -> Bundle:
    """Draw images on the CPU, fit the map, and write it and the manifest into the bundle's folder."""
    model, size = bundle.model, bundle.model.default_size
    unknowns = WINDOW**2 * model.bits + 1
    images = max(math.ceil(SAMPLES * unknowns / size.tokens), min(MOST, SMALL // (size.height * size.width)))
    tokens, pixels = [], []
    with Pipeline.open(bundle.folder, device="cpu", backend="onnxruntime-cpu", max_batch=BATCH) as pipeline:
        for request in tqdm(list(_requests(bundle, images)), desc="fit fast previews", leave=False, disable=None):
            for image in pipeline.generate(request):
                tokens.append(image.tokens)
                pixels.append(image.pixels)
    fitted = PreviewMap.fitted(np.stack(tokens), np.stack(pixels), size, model.patch_side)
    np.save(bundle.folder / FILE, fitted.weights.astype(np.float16), allow_pickle=False)
    replace(bundle, fast_preview=file_spec(bundle.folder, bundle.folder / FILE)).write()
    return Bundle.open(bundle.folder)


def _requests(bundle: Bundle, images: int) -> Iterator[Request]:
    """Requests for classes spread over all of them, or for prompts of random words."""
    generator = np.random.default_rng(SEED)
    words = [] if bundle.text is None else sorted(filter(str.isalpha, PromptEncoder.open(bundle).tokenizer.get_vocab()))
    batch = 1 if bundle.model.default_size.tokens > 1024 else BATCH  # large images are drawn one at a time
    for first in range(0, images, batch):
        count = min(batch, images - first)
        common = Request(seed=SEED + first, steps=STEPS, count=1)
        if bundle.text is None:
            classes = [i * bundle.model.num_classes // images for i in range(first, first + count)]
            yield replace(common, classes=classes)
        else:
            prompts = [" ".join(generator.choice(words, WORDS)) for _ in range(count)]
            yield replace(common, prompts=prompts)
