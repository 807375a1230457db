"""What the graph of a stage says of itself to tools that know ONNX alone."""

from collections.abc import Mapping
from importlib.metadata import version

PRODUCER = "bitdance-edge"


def graph_properties(bundle: str, stage: str, provenance: Mapping[str, object]) -> dict[str, str]:
    """The ``metadata_props`` of a stage's graph: which bundle and stage it is, made by whom, under which licence."""
    made = {"bundle": bundle, "stage": stage, "bitdance_edge_version": version("bitdance-edge")}
    said = {name: str(provenance[name]) for name in ("checkpoint", "license") if provenance.get(name)}
    return {**made, **said}
