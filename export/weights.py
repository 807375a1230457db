"""Weights during an export: placeholders while a stage is traced, then written one at a time or linked.

A trace needs shapes alone. For large weights it gets tensors that repeat one value and so take no memory; in the
finished graph each is replaced by a byte range of the checkpoint's own file, or by a copy that is read, converted and
written before the next one is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.links import hard_link
from bitdance_edge.model.tensor_file import StoredTensor

# Above the sizes up to which the optimiser folds or merges constants by their values.
HOLLOW_FROM = 65_536
STAGE_PREFIX = "model."  # a stage holds the model under this name
INLINE_UP_TO = 1024  # bytes; larger weights are kept beside the graph
IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}

# Key of the model -> its values, in memory or in a file
Source = Mapping[str, Tensor | StoredTensor]


def read(weight: Tensor | StoredTensor) -> Tensor:
    return weight.read() if isinstance(weight, StoredTensor) else weight


def hollowed(model: Any, source: Source, dtype: torch.dtype) -> Any:
    """Make a model of the same configuration in ``dtype`` whose large weights take no memory."""
    with torch.device("meta"):
        hollow = type(model)(model.config)
    state = {}
    for key, weight in source.items():
        if _count(weight) > HOLLOW_FROM:
            state[key] = torch.zeros((), dtype=dtype).expand(tuple(weight.shape))
        else:
            state[key] = read(weight).to(dtype)
    hollow.load_state_dict(state, assign=True)
    return hollow.to(dtype).eval().requires_grad_(False)


@dataclass
class WeightPlacer:
    """Puts the weights of a model into its stages' graphs.

    Args:
        source: the weights as stored.
        dtype: of the graphs.
        names: files whose weights, where they are stored in ``dtype``, are taken from there by a hard link of this name
            beside the graph.
    """

    source: Source
    dtype: torch.dtype
    names: Mapping[Path, str] = field(default_factory=dict)
    links: dict[Path, Path] = field(default_factory=dict)  # link beside the graph -> file of the checkpoint

    def place(self, graph: ir.Model, path: Path) -> None:
        """Give every weight of a traced stage its name and values; ``path`` is where the graph will be written."""
        for name, value in list(graph.graph.initializers.items()):
            key = name.removeprefix(STAGE_PREFIX)
            if key not in self.source:
                continue
            graph.graph.initializers.pop(name)
            value.name = key
            graph.graph.initializers[key] = value
            weight = self.source[key]
            if _count(weight) <= HOLLOW_FROM:
                continue
            if isinstance(weight, StoredTensor) and weight.dtype == self.dtype and weight.file in self.names:
                value.const_value = self._linked(weight, key, path.parent)
            else:
                self._copied(graph, value, weight)
        self._require_real(graph)
        self._externalize(graph, path)

    @staticmethod
    def _require_real(graph: ir.Model) -> None:
        """Refuse a placeholder that was not replaced because it has another name: it would be written as zeros."""
        for name, value in graph.graph.initializers.items():
            raw = getattr(value.const_value, "raw", None)
            if isinstance(raw, Tensor) and raw.numel() > 1 and not any(raw.stride()):
                raise ExportError(f"the exporter renamed a weight to {name}: this version of torch is not supported")

    def _linked(self, weight: StoredTensor, name: str, folder: Path) -> ir.ExternalTensor:
        link = folder / self.names[weight.file]
        if link not in self.links:
            hard_link(weight.file, link)
            self.links[link] = weight.file.resolve()
        return ir.ExternalTensor(
            location=link.name,
            offset=weight.offset,
            length=weight.bytes,
            dtype=IR_DTYPES[self.dtype],
            shape=ir.Shape(weight.shape),
            name=name,
            base_dir=folder,
        )

    def _copied(self, graph: ir.Model, value: ir.Value, weight: Tensor | StoredTensor) -> None:
        """Set values that are read when they are written; transposed where the graph only ever transposes them."""
        name, shape = str(value.name), tuple(weight.shape)
        transposes = [node for node in value.consumers() if _is_transpose(node)]
        if transposes and len(transposes) == len(value.consumers()):
            value.shape = ir.Shape(shape[::-1])
            value.const_value = self._lazy(weight, name, shape[::-1], transposed=True)
            for node in transposes:
                ir.convenience.replace_all_uses_with(node.outputs[0], value)
                graph.graph.remove(node, safe=True)
        else:
            value.const_value = self._lazy(weight, name, shape, transposed=False)

    def _lazy(
        self, weight: Tensor | StoredTensor, name: str, shape: tuple[int, ...], transposed: bool
    ) -> ir.LazyTensor:
        def values() -> ir.TensorProtocol:
            converted = read(weight).to(self.dtype)
            return ir.tensor(converted.T.contiguous() if transposed else converted.contiguous(), name=name)

        return ir.LazyTensor(values, dtype=IR_DTYPES[self.dtype], shape=ir.Shape(shape), name=name)

    @staticmethod
    def _externalize(graph: ir.Model, path: Path) -> None:
        """Write what is neither linked nor tiny to one file beside the graph, tensor by tensor."""
        kept = [
            value
            for value in graph.graph.initializers.values()
            if value.const_value is not None
            and not isinstance(value.const_value, ir.ExternalTensor)
            and value.const_value.nbytes > INLINE_UP_TO
        ]
        if kept:
            tensors = [value.const_value for value in kept if value.const_value is not None]
            written = ir.external_data.convert_tensors_to_external(tensors, path.parent, f"{path.name}.data")
            for value, tensor in zip(kept, written, strict=True):
                value.const_value = tensor


def _count(weight: Tensor | StoredTensor) -> int:
    count = 1
    for size in weight.shape:
        count *= size
    return count


def _is_transpose(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]
