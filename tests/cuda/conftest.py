"""Tests of onnxruntime-gpu over the fake CUDA of ``tests/fake_cuda``: ``make test-cuda`` sets both up and runs them."""

import os
from collections.abc import Callable

import pytest
from building import build
from cuda_trace import Trace

from bitdance_edge.runtime import Bundle

if "FAKE_CUDA_TRACE" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def trace() -> Trace:
    made = Trace()
    made.start()
    return made


@pytest.fixture(scope="session")
def on_cuda(exported: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """``on_cuda("cc_1x", "fp16")`` gives the bundle of a fixture model, built for CUDA."""

    def make(fixture: str, precision: str) -> Bundle:
        bundle = exported(fixture, precision=precision)
        build(bundle, "cuda")
        return bundle

    return make


@pytest.fixture(params=["fp32", "fp16", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param
