"""A stage in PyTorch as a Polygraphy runner, with what each of its modules made beside the stage's outputs."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from torch import Tensor

from bitdance_edge.export.manifest import cache_spec, model_spec
from bitdance_edge.export.opsets import OPSETS
from bitdance_edge.export.signatures import stage_exports
from bitdance_edge.export.stages import Generator
from bitdance_edge.export.weights import STAGE_PREFIX
from bitdance_edge.model import load_generator, load_text_to_image
from bitdance_edge.model.text_checkpoint import is_text_to_image
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.errors import BuildError


def load_reference(bundle: Bundle, checkpoint: Path, variant: str | None) -> Generator:
    """Load what a bundle was exported from, in float32, with the bundle's sizes and longest prompt.

    Args:
        variant: of a .pt file, as at export.

    Raises:
        ModelError: it is not a whole checkpoint.
        BuildError: the bundle is of another model.
    """
    if is_text_to_image(checkpoint):
        if variant is not None:
            raise BuildError(f"--variant has no effect on {checkpoint}: text-to-image folders say what they are")
        model = load_text_to_image(checkpoint)
        if bundle.text is not None:
            sizes = tuple((size.height, size.width) for size in bundle.model.sizes)
            model.config = replace(model.config, sizes=sizes, max_prompt=bundle.text.max_prompt)
    else:
        model = load_generator(checkpoint, variant=variant)
    same_cache = replace(cache_spec(model, "fp32"), dtype=bundle.cache.dtype) == bundle.cache
    if model_spec(model) != bundle.model or not same_cache:
        raise BuildError(
            f"{checkpoint} is of another model than {bundle.folder}; give what it was exported from: "
            f"{bundle.provenance.get('checkpoint', 'its provenance does not say')}"
        )
    return model


class PyTorchRunner(BaseRunner):
    """float32, by the plain operators of opset 20: some of those of 24 exist in ONNX alone.

    Args:
        results: module of the stage -> tensor of the ONNX graph that stands for its output.
    """

    def __init__(self, model: Generator, stage: str, results: Mapping[str, str]) -> None:
        super().__init__(name="pytorch")
        self.export = stage_exports(model, OPSETS[20], torch.float32)[stage]()
        self.results = results

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for name, (dtype, shape) in self.export.inputs.items():
            metadata.add(name, dtype=dtype, shape=[dim if isinstance(dim, int) else None for dim in shape])
        return metadata

    @torch.no_grad()
    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> "OrderedDict[str, np.ndarray]":
        tensors = {
            name: torch.from_numpy(np.array(feed_dict[name])).to(dtype)
            for name, (dtype, _) in self.export.inputs.items()
        }
        made: OrderedDict[str, np.ndarray] = OrderedDict()
        started = time.perf_counter()

        def keep(tensor: str) -> Any:
            def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    made[tensor] = output.numpy().copy()

            return hook

        with ExitStack() as hooks:
            for path, module in self.export.module.named_modules():
                name = path.removeprefix(STAGE_PREFIX)  # graphs name modules as the model does
                if name in self.results:
                    hooks.callback(module.register_forward_hook(keep(self.results[name])).remove)
            outputs = self.export.module.eval()(*self.export.arguments(tensors))
        self.inference_time = time.perf_counter() - started
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        made.update(zip(self.export.outputs, (output.numpy() for output in outputs), strict=True))
        return made
