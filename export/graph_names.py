"""What a finished graph says of itself: node names are paths of the model's modules, and it names who made it of what.

Tools that know ONNX alone (Netron, Polygraphy, trtexec's layer lists, profilers) show these names.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto

from bitdance_edge.runtime.bundle.graph_properties import PRODUCER
from bitdance_edge.runtime.bundle.module_paths import MODULE_PATH, innermost_module

PRODUCTS = ("MatMul", "Gemm", "Conv")  # what a layer is known for: its node has the layer's own name


def name_graph(path: Path, properties: Mapping[str, str]) -> None:
    """Rewrite a traced graph's names: ``backbone.layers.3.attn.qkv`` for a layer's product, others with ``/Add``.

    Each node keeps its module path in its metadata, which errors and profiles name; source lines are dropped, because
    they name the machine of the export.

    Args:
        path: of the graph; its stem is the stage, for nodes that belong to no module.
        properties: the graph's ``metadata_props``.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        _keep_module_path(node)
    for node, name in zip(model.graph.node, _node_names(model.graph, path.stem), strict=True):
        node.name = name
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer)
    for described in (*values, model.graph, model):
        del described.metadata_props[:]
    model.producer_name, model.producer_version = PRODUCER, version("bitdance-edge")
    model.graph.name = path.stem
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def _keep_module_path(node: NodeProto) -> None:
    scopes = [entry.value for entry in node.metadata_props if entry.key == MODULE_PATH]
    del node.metadata_props[:]
    for value in scopes:
        # Paths are those of the model: the stage that holds it stands for its root.
        root, *modules, operation = ast.literal_eval(value)
        inner = [module.removeprefix("model.") for module in modules if module != "model"]
        node.metadata_props.add(key=MODULE_PATH, value=repr([root, *inner, operation]))


def _node_names(graph: GraphProto, stage: str) -> Iterator[str]:
    """Yield a unique name for each node; one that the optimiser made belongs where its first known input was made."""
    made_in: dict[str, str] = {}
    modules = []
    for node in graph.node:
        inherited = next((made_in[name] for name in node.input if name in made_in), "")
        module = innermost_module(node.metadata_props) if node.metadata_props else inherited
        modules.append(module)
        made_in.update(dict.fromkeys(node.output, module))
    products = Counter(module for module, node in zip(modules, graph.node, strict=True) if node.op_type in PRODUCTS)
    nodes = Counter(modules)
    used: Counter[str] = Counter()
    for module, node in zip(modules, graph.node, strict=True):
        is_layer = nodes[module] == 1 or (node.op_type in PRODUCTS and products[module] == 1)
        name = module if module and is_layer else f"{module or stage}/{node.op_type}"
        used[name] += 1
        yield name if used[name] == 1 else f"{name}_{used[name]}"
