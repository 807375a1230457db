"""Operations counted from exported graphs, compared with PyTorch's counter on the modules they were made from."""

from pathlib import Path

import onnx
import pytest
import torch
from benching import CHECKPOINT
from onnx import TensorProto, helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bitdance_edge.bench.operations import GraphCosts
from bitdance_edge.export.opsets import OPSETS
from bitdance_edge.export.signatures import stage_exports
from bitdance_edge.model import load_generator
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.specs import dim_size

SIZES = {"R": 2, "B": 1, "N": 3, "M": 4, "T": 4, "PH": 2, "PW": 2}


@pytest.mark.parametrize("stage", ["tokens", "time", "modulation", "head", "decoder", "encoder"])
def test_operations_are_those_that_pytorch_counts(bundle: Bundle, stage: str):
    model = load_generator(CHECKPOINT)
    export = stage_exports(model, OPSETS[20], torch.float32)[stage]()
    sizes = {**SIZES, **bundle.model.default_size.dims}
    inputs = {
        name: torch.zeros([dim if isinstance(dim, int) else dim_size(dim, sizes) for dim in shape], dtype=dtype)
        for name, (dtype, shape) in export.inputs.items()
    }
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused one on CPUs is not counted
        export.module(*export.arguments(inputs))
    cost = GraphCosts(bundle.folder / bundle.stage(stage).graph.path).cost(sizes)
    assert cost.operations == counter.get_total_flops()
    assert 0 < cost.weight_bytes <= bundle.stage(stage).bytes


def test_attention_counts_the_whole_cache(bundle: Bundle):
    graph = GraphCosts(bundle.folder / bundle.stage("backbone").graph.path)
    four, eight = (graph.cost({**SIZES, "T": length}).operations for length in (4, 8))
    layers = load_generator(CHECKPOINT).backbone.layers
    products = 2 * sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2)
    cache = bundle.cache
    attention = 4 * cache.layers * cache.heads * cache.head_dim * cache.length
    assert eight - four == 4 * SIZES["R"] * (products + attention)


def test_products_convolutions_and_attention_count(tmp_path: Path):
    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Attention", ["q", "k", "k"], ["a"]),
        helper.make_node("Conv", ["i", "f"], ["o"]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    inputs = [value("x", "R", 3, 8), value("w", 8, 5), value("q", "R", 2, 3, 4), value("k", "R", 2, 7, 4)]
    inputs += [value("i", 1, 6, 10, 10), value("f", 2, 6, 3, 3)]
    outputs = [value("z", "R", 3, 5), value("a", "R", 2, 3, 4), value("o", 1, 2, 10, 10)]
    graph = helper.make_graph(nodes, "products", inputs, outputs, value_info=[value("y", "R", 3, 5)])
    onnx.save(helper.make_model(graph), tmp_path / "products.onnx")
    product, attention, convolution = 2 * 2 * 3 * 5 * 8, 4 * (2 * 2 * 3 * 4) * 7, 2 * (2 * 100) * (6 * 9)
    found = GraphCosts(tmp_path / "products.onnx").cost({"R": 2})
    assert found.operations == product + attention + convolution
