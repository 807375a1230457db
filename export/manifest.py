"""The parts of a bundle's manifest that describe a model and its exported graphs."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import external_data_helper

from bitdance_edge.export.graph_tensors import activation_bytes, tensor_specs
from bitdance_edge.export.signatures import cache_slots
from bitdance_edge.export.stages import Exported, Generator
from bitdance_edge.model import SamplingDefaults, TextToImage
from bitdance_edge.model.prompt import BOM, CONDITIONAL, UNCONDITIONAL, PromptTokenizer
from bitdance_edge.model.tokenizer_model import TokenizerModel
from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS, tensor_bytes
from bitdance_edge.runtime.bundle.manifest import file_spec
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.bundle.specs import (
    CLASS_CONDITIONAL,
    TEXT_TO_IMAGE,
    TOKENIZER,
    CacheSpec,
    FileSpec,
    ModelSpec,
    SamplingSpec,
    StageSpec,
    TextSpec,
    WindowSpec,
)
from bitdance_edge.runtime.memory_plan import RECORDED_WINDOW
from bitdance_edge.runtime.window_measure import TOLERANCES

DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# What the activations of the window's stages are recorded for: a guided image's window of 8.
WINDOW_SIZES = {"W": RECORDED_WINDOW, "H": 2, "K": 1}
PROMPT_TOKENIZER = "tokenizer.json"


@dataclass
class FileHashes:
    """The files of a bundle being written, each hashed once though several stages may use it."""

    folder: Path
    known: dict[Path, FileSpec] = field(default_factory=dict)

    def __getitem__(self, path: Path) -> FileSpec:
        if path not in self.known:
            self.known[path] = file_spec(self.folder, path)
        return self.known[path]


def stage_spec(files: FileHashes, path: Path, precision: str, model: ModelSpec) -> StageSpec:
    """Describe an exported graph; how far it is from PyTorch is not known yet."""
    inputs, outputs = tensor_specs(path)
    sizes = {"R": 2, "B": 1, "N": 1, "M": 1, **WINDOW_SIZES, "T": model.tokens_per_step, **model.largest_size.dims}
    graph = onnx.load(path, load_external_data=False).graph
    external = [tensor for tensor in graph.initializer if external_data_helper.uses_external_data(tensor)]
    locations = {external_data_helper.ExternalDataInfo(tensor).location for tensor in external}
    return StageSpec(
        graph=files[path],
        weights=tuple(files[path.parent / location] for location in sorted(locations)),
        precision=precision,
        inputs=inputs,
        outputs=outputs,
        max_error=None,
        tolerance=0.0,
        weight_bytes=sum(tensor_bytes(tensor.dims, ONNX_NUMBERS[tensor.data_type]) for tensor in external),
        activation_bytes=activation_bytes(path, sizes),
    )


def model_spec(model: Exported) -> ModelSpec:
    config = model.config
    sizes = tuple(Size(width=width, height=height) for height, width in config.sizes)
    if isinstance(model, TokenizerModel):
        return ModelSpec(
            kind=TOKENIZER,
            tokens_per_step=1,
            bits=config.bits,
            pixels_per_token=config.tokenizer.downsampling,
            patch_side=model.patch_side,
            sizes=sizes,
            prompt_tokens=0,
            num_classes=0,
            class_names=(),
            decoder_noise=config.tokenizer.gan_decoder,
        )
    config = model.config
    return ModelSpec(
        kind=TEXT_TO_IMAGE if isinstance(model, TextToImage) else CLASS_CONDITIONAL,
        tokens_per_step=config.tokens_per_step,
        bits=config.bits,
        pixels_per_token=config.tokenizer.downsampling,
        patch_side=model.patch_side,
        sizes=sizes,
        prompt_tokens=config.prompt_tokens,
        num_classes=0 if isinstance(model, TextToImage) else model.config.num_classes,
        class_names=() if isinstance(model, TextToImage) else model.config.class_names,
        decoder_noise=config.tokenizer.gan_decoder,
    )


def cache_spec(model: Exported, precision: str) -> CacheSpec:
    """The cache's layout; that of a tokenizer alone, which has no backbone, is empty."""
    if isinstance(model, TokenizerModel):
        return CacheSpec(layers=0, heads=0, length=0, head_dim=0, dtype=DTYPE_NAMES[precision])
    if isinstance(model, TextToImage):
        language = model.config.backbone
        layers, heads, head_dim = language.layers, language.kv_heads, language.head_dim
    else:
        layers, heads, head_dim = model.config.layers, model.config.heads, model.config.head_dim
    return CacheSpec(
        layers=layers,
        heads=heads,
        length=cache_slots(model),
        head_dim=head_dim,
        dtype=DTYPE_NAMES[precision],
    )


def published_spec(model: Exported) -> SamplingSpec | None:
    """The sampling settings that the checkpoint was published with; None where they are its defaults."""
    if isinstance(model, TokenizerModel):
        return None
    published = model.config.published_sampling
    return None if published is None else _sampling(model, published)


def sampling_spec(model: Exported) -> SamplingSpec:
    """The defaults of a request; a tokenizer alone takes none, and has the least of each."""
    if isinstance(model, TokenizerModel):
        return SamplingSpec(steps=1, guidance=1.0, guidance_schedule="constant", time_shift=1.0)
    return _sampling(model, model.config.sampling)


def _sampling(model: Generator, sampling: SamplingDefaults) -> SamplingSpec:
    return SamplingSpec(
        steps=sampling.steps,
        guidance=sampling.guidance,
        guidance_schedule=sampling.guidance_schedule,
        time_shift=model.config.time_shift,
        sampler=sampling.sampler,
    )


def window_spec(model: Exported) -> WindowSpec | None:
    """The windowed sampler before anything was measured; None: a tokenizer alone has none."""
    return None if isinstance(model, TokenizerModel) else WindowSpec(tolerance=TOLERANCES[0], runs=())


def text_spec(prompts: PromptTokenizer, folder: Path) -> TextSpec:
    """Copy the tokenizer into the bundle, without a byte order mark, and describe how prompts are written."""
    (folder / PROMPT_TOKENIZER).write_bytes(prompts.file.read_bytes().removeprefix(BOM))
    sizes = prompts.config.sizes
    return TextSpec(
        tokenizer=file_spec(folder, folder / PROMPT_TOKENIZER),
        conditional=CONDITIONAL,
        unconditional=UNCONDITIONAL,
        suffixes={f"{width}x{height}": tuple(prompts.suffix(height, width)) for height, width in sizes},
        max_prompt=prompts.config.max_prompt,
        example=prompts.config.example,
    )
