"""Built layers and the ONNX nodes, and so the PyTorch modules, that went into them."""

import re

from bitdance_edge.engines.graph import GraphFacts


def nodes_of(layer_name: str, metadata: str, facts: GraphFacts) -> list[str]:
    """The ONNX nodes of a built layer.

    TensorRT keeps them in a layer's metadata as ``[ONNX Layer: name]``, one for each node that was fused into it; where
    there is none, node names are looked for in the layer's own name.
    """
    named = re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata) or re.findall(r"[\w./]+", layer_name)
    return [name for name in dict.fromkeys(named) if name in facts.modules]


def module_of(nodes: list[str], facts: GraphFacts) -> str:
    """The innermost module that holds all the nodes: ``head.res_blocks.0`` for nodes of its w1 and its w2."""
    paths = [facts.modules[node].split(".") for node in nodes if facts.modules[node]]
    if not paths:
        return ""
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
