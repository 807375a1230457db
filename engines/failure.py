"""A build that failed, said in the terms of the model: stage, PyTorch module, operator, and what to try."""

import re
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.runtime.errors import BuildError

# What the library's message holds -> what helps.
REMEDIES = {
    "HW-specific datatypes: fp8": "build for GPUs that have it: --target rtx:8.9,12.0",
    "FP32 GEMM is not supported": "export the bundle with --dtype fp16",
    "UINT8": "keep uint8 to inputs and outputs of the stage: cast first, or last",
    "No importer registered": "export the bundle with --opset 20, which has older operators only",
    "out of memory": "close other programs or build on a machine with more memory",
    "bad_alloc": "close other programs or build on a machine with more memory",
}
MESSAGE_LENGTH = 400  # characters of TensorRT's own words; the log has them all
OTHERWISE = "export the bundle with --opset 20, or with another --dtype"


class BuildFailure(BuildError):
    """TensorRT refused a stage."""


def parse_failure(stage: str, errors: Sequence[Any], facts: GraphFacts) -> BuildFailure:
    """From the parser's errors (``ParserError``), of which the first is the cause."""
    first = errors[0]
    return BuildFailure(_said(stage, first.node_name(), first.desc(), facts))


def build_failure(stage: str, log: Sequence[str], facts: GraphFacts) -> BuildFailure:
    """From the builder's log: the first error, and the node that it names."""
    errors = [line for line in log if "ERROR" in line.split(":", 1)[0]] or ["TensorRT gave no reason"]
    message = next((line for line in errors if _named(line, facts)), errors[0])
    return BuildFailure(_said(stage, _named(message, facts), message, facts))


def _named(message: str, facts: GraphFacts) -> str:
    """The longest node name that a message holds, "" if none; layers are named after their nodes."""
    words = re.findall(r"[\w./]+", message)
    return max((word for word in words if word in facts.modules), key=len, default="")


def _said(stage: str, node: str, message: str, facts: GraphFacts) -> str:
    where = stage
    if node in facts.modules:
        where += f", module {facts.modules[node] or '(the stage itself)'}, operator {facts.operators[node]} ({node})"
    remedy = next((text for sign, text in REMEDIES.items() if sign.lower() in message.lower()), OTHERWISE)
    return f"{where}: {shorten(message, MESSAGE_LENGTH, placeholder=' ...')}; try: {remedy}"
