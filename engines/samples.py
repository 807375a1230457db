"""What each stage is given in a real generation: the inputs that builds are checked with, and that profiles run on.

One guided image, its first patches, a few sampling steps, on ONNX Runtime; then the decoder on its tokens, and the
encoder on the image. A sample is taken just before the launch, from the buffers that the loop has bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bitdance_edge.runtime.backends.interface import Backend
from bitdance_edge.runtime.backends.observed import ObservedBackend
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, WINDOW_STAGES, StageName
from bitdance_edge.runtime.loop import BoundLoop, generate_tokens
from bitdance_edge.runtime.noise import ImageNoise, Stream, normals
from bitdance_edge.runtime.request import Request
from bitdance_edge.runtime.streaming import token_request

Sample = dict[str, np.ndarray]  # inputs of one launch by name

STEPS = 4  # sampling steps of the recorded generation; shapes but for the time table's do not depend on it
PATCHES = 2  # the prompt, then a patch
WINDOW = 2  # of the generation that the windowed sampler's stages are recorded in
GUIDANCE = 2.0  # any above 1 runs both rows
SEED = 1

# Stage -> what is recorded of it: name of the sample -> which launch it is. Of the head, the first of the second patch:
# the first patch's rows may be sampled apart, and its input is noise, which is finite whatever the head makes of it.
SAMPLES: dict[StageName, dict[str, int]] = {
    StageName.PROMPT: {"all": 0},
    StageName.TIME: {"all": 0},
    StageName.BACKBONE: {"prompt": 0, "patch": 1},
    StageName.MODULATION: {"all": 1},
    StageName.HEAD: {"all": STEPS + 1},
    StageName.SETTLE: {"all": 2},
    StageName.EXTRAPOLATE: {"all": 2},
    StageName.ADVANCE: {"all": 4 * WINDOW},
    StageName.TOKENS: {"all": 1},
    StageName.DECODER: {"all": 0},
    StageName.ENCODER: {"all": 0},
}


@dataclass
class Recorder:
    """Keeps what stages are given at the launches of ``SAMPLES``."""

    bundle: Bundle
    samples: dict[tuple[str, str], Sample] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)

    def note(self, stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        launch = self.launches.get(stage, 0)
        self.launches[stage] = launch + 1
        for name, wanted in SAMPLES[StageName(stage)].items():
            if launch == wanted:
                inputs = self.bundle.stage(stage).inputs
                self.samples[stage, name] = {tensor.name: buffers[tensor.name].read() for tensor in inputs}


def record_samples(bundle: Bundle) -> dict[tuple[str, str], Sample]:
    """Inputs of every stage, by (stage, sample): names as in ``SAMPLES``, arrays as in the bundle's manifest.

    Raises:
        BackendError: ONNX Runtime cannot run this bundle here (bfloat16).
        BundleError: a file is not the one in the manifest.
    """
    recorder = Recorder(bundle)
    backend = ObservedBackend(OnnxRuntimeBackend(bundle, builds=False), before=recorder.note)
    size = bundle.model.default_size
    tokens = _generated(bundle, backend) if bundle.model.generates else _drawn(bundle)
    inputs = {"tokens": tokens}
    if bundle.model.decoder_noise:
        inputs["noise"] = normals(SEED, Stream.DECODER, 0, 1, (size.tokens, bundle.model.bits))
    pixels = _run(bundle, backend, StageName.DECODER, inputs, "pixels", size)
    _run(bundle, backend, StageName.ENCODER, {"pixels": pixels}, "tokens", size)
    return recorder.samples


def _drawn(bundle: Bundle) -> np.ndarray:
    """Tokens of an image by chance, for a tokenizer alone, float32 ``[1, h*w, C]``."""
    shape = (bundle.model.default_size.tokens, bundle.model.bits)
    return np.where(normals(SEED, Stream.IMAGE, 0, 1, shape) > 0, np.float32(1), np.float32(-1))


def _generated(bundle: Bundle, backend: Backend) -> np.ndarray:
    """Tokens of an image's first patches, repeated over the image, float32 ``[1, h*w, C]``."""
    model = bundle.model
    request = replace(Request.example(bundle), seed=SEED, steps=STEPS, guidance=GUIDANCE, window=1)
    size = request.resolve(bundle).size
    tokens = _patches(bundle, backend, request, LOOP_STAGES)
    if bundle.window is not None:
        _patches(bundle, backend, replace(request, window=WINDOW), (*LOOP_STAGES, *WINDOW_STAGES))
    return np.resize(tokens, (1, size.tokens, model.bits))


def _patches(bundle: Bundle, backend: Backend, request: Request, names: Sequence[str]) -> np.ndarray:
    """Tokens of an image's first patches, float32 ``[1, PATCHES*P, C]``."""
    settings, model = request.resolve(bundle), bundle.model
    noise = ImageNoise([SEED], STEPS, (model.tokens_per_step, model.bits))
    asked = token_request(settings)
    loop = BoundLoop(backend, bundle, {name: backend.load(name) for name in names}, asked.shape)
    patches = generate_tokens(loop, asked, noise)
    return np.concatenate([next(patches) for _ in range(min(PATCHES, settings.size.patches))], axis=1)


def _run(
    bundle: Bundle, backend: Backend, stage: str, inputs: dict[str, np.ndarray], output: str, size: ImageSize
) -> np.ndarray:
    spec = bundle.stage(stage)
    tensors = (*spec.inputs, *spec.outputs)
    sizes = {"B": 1, **size.dims}
    buffers = {tensor.name: backend.empty(tensor.sized(sizes), tensor.dtype) for tensor in tensors}
    for name, values in inputs.items():
        buffers[name].write(values.reshape(buffers[name].shape))
    backend.load(stage).bind(buffers)()
    return buffers[output].read()
