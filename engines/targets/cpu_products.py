"""The forms in which ONNX Runtime computes quantised products on a CPU, without passes over results that add nothing.

It makes one node of a product between Q and DQ (MatMulIntegerToFloat), which takes a bias, and leaves the bias outside.
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from onnx import NodeProto

from bitdance_edge.engines.rewriting import Graph

WITHOUT_BIAS = 6  # inputs of MatMulIntegerToFloat: two matrices, their scales and zero points
VALUE_BY_VALUE = ("Sigmoid", "Mul", "QuantizeLinear", "DequantizeLinear")


def add_biases(graph: Graph) -> int:
    """Have products of an optimised graph add the biases behind them; returns their number."""
    added = 0
    for node in list(graph.model.graph.node):
        if node.op_type != "MatMulIntegerToFloat" or len(node.input) != WITHOUT_BIAS:
            continue
        weight = graph.weights.get(node.input[1])
        bias = bias_behind(graph, node, weight.dims[-1]) if weight is not None else None
        if bias is not None:
            add, constant = bias
            node.input.append(constant)
            node.output[0] = add.output[0]
            graph.model.graph.node.remove(add)
            added += 1
    return added


def bias_behind(graph: Graph, product: NodeProto, outputs: int) -> tuple[NodeProto, str] | None:
    """The Add behind a product that adds a constant to every row, and that constant; None where there is none."""
    reader = graph.only_reader(product.output[0])
    if reader is None or reader.op_type != "Add":
        return None
    constant = next((name for name in reader.input if _is_row(graph, name, outputs)), None)
    return None if constant is None else (reader, constant)


def keep_dimensions(graph: Graph) -> int:
    """Drop the reshapes around quantised products whose rows are flattened and given their dimensions back.

    A graph's results are copied by a reshape. Quantised products take rows of any dimensions as they are; in float32
    only a product of flat rows adds its bias.

    Returns:
        the number of results that are no longer copied.
    """
    for node in graph.model.graph.node:
        if node.op_type == "Reshape" and len(node.input) == 2:
            flat, whole = graph.dims(node.output[0]), graph.dims(node.input[0])
            if flat and whole and len(flat) == 2 < len(whole) and flat[-1] == whole[-1]:
                return _keep_dimensions(graph, node, whole[:-1])
    return 0


def _keep_dimensions(graph: Graph, flattening: NodeProto, leading: list[int | str]) -> int:
    flat, last, quantised = {flattening.output[0]}, [], False
    for node in graph.model.graph.node:
        read = [name for name in node.input if name in flat]
        if node.op_type == "Reshape" and read and (graph.dims(node.output[0]) or [])[:-1] == leading:
            last.append(node)
        elif read and (_is_by_value(graph, node, flat) or _keeps_rows(graph, node)):
            flat.update(node.output)
            quantised |= node.op_type == "QuantizeLinear"
        elif read:
            return 0
    shared = any(len(graph.readers[node.input[0]]) != 1 for node in last)
    if not quantised or shared or flat & graph.outputs:
        return 0
    (flattened,) = flattening.output
    for reader in graph.readers[flattened]:
        reader.input[:] = [flattening.input[0] if name == flattened else name for name in reader.input]
    for node in last:
        graph.producers[node.input[0]].output[0] = node.output[0]
    kept = graph.model.graph
    for node in (flattening, *last):
        kept.node.remove(node)
    described = [value for value in kept.value_info if value.name not in flat]
    del kept.value_info[:]
    kept.value_info.extend(described)
    return len(last)


def _is_by_value(graph: Graph, node: NodeProto, flat: set[str]) -> bool:
    """Whether a node computes each value from those in its place, and from constants that are one value."""
    others = [name for name in node.input if name not in flat]
    return node.op_type in VALUE_BY_VALUE and all(
        name in graph.weights and not graph.weights[name].dims for name in others
    )


def _is_row(graph: Graph, name: str, outputs: int) -> bool:
    return name in graph.weights and list(graph.weights[name].dims) == [outputs]


def _keeps_rows(graph: Graph, node: NodeProto) -> bool:
    """Whether a node multiplies rows by a matrix, or adds a row to each."""
    unpacking = graph.producers.get(node.input[-1])
    constant = (
        unpacking.input[0] if unpacking is not None and unpacking.op_type == "DequantizeLinear" else node.input[-1]
    )
    rank = {"MatMul": 2, "Add": 1}.get(node.op_type)
    return constant in graph.weights and len(graph.weights[constant].dims) == rank
