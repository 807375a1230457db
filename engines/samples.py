"""What each stage is given in a real generation: the inputs that builds are checked with, and profiles run on.

One guided image, its first patches, a few sampling steps, on ONNX Runtime; then the decoder and the encoder on what
came out. A sample is taken just before the launch, of buffers as the loop has bound them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bitdance_edge.runtime.backends.interface import Backend
from bitdance_edge.runtime.backends.observed import ObservedBackend
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.loop import BoundLoop, generate_tokens
from bitdance_edge.runtime.noise import ImageNoise, Stream, normals
from bitdance_edge.runtime.request import Request
from bitdance_edge.runtime.streaming import token_request

Sample = dict[str, np.ndarray]  # inputs of one launch by name

STEPS = 4  # sampling steps of the recorded generation; shapes but for the time table's do not depend on it
PATCHES = 2  # the prompt, then a patch
GUIDANCE = 2.0  # any above 1 runs both rows
SEED = 1

# Stage -> what is recorded of it: name of the sample -> which launch it is. Of the head, the first of the second patch:
# the first patch's rows may be sampled apart, and its input is noise, which is finite whatever the head makes of it.
SAMPLES: dict[str, dict[str, int]] = {
    "prompt": {"all": 0},
    "time": {"all": 0},
    "backbone": {"prompt": 0, "patch": 1},
    "modulation": {"all": 1},
    "head": {"all": STEPS + 1},
    "tokens": {"all": 1},
    "decoder": {"all": 0},
    "encoder": {"all": 0},
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
        for name, wanted in SAMPLES[stage].items():
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
    model = bundle.model
    settings = replace(Request.example(bundle), seed=SEED, steps=STEPS, guidance=GUIDANCE).resolve(bundle)
    size = settings.size
    noise = ImageNoise([SEED], STEPS, (model.tokens_per_step, model.bits))
    stages = {name: backend.load(name) for name in LOOP_STAGES}
    request = token_request(settings)
    loop = BoundLoop(backend, bundle, stages, request.shape)
    patches = generate_tokens(loop, request, noise)
    tokens = np.concatenate([next(patches) for _ in range(min(PATCHES, size.patches))], axis=1)
    del stages, patches, loop  # their weights and the cache, before those of the decoder
    whole = np.resize(tokens, (1, size.tokens, model.bits))  # what was generated, repeated over the image
    inputs = {"tokens": whole}
    if model.decoder_noise:
        inputs["noise"] = normals(SEED, Stream.DECODER, 0, 1, (size.tokens, model.bits))
    pixels = _run(bundle, backend, "decoder", inputs, "pixels", size)
    _run(bundle, backend, "encoder", {"pixels": pixels}, "tokens", size)
    return recorder.samples


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
