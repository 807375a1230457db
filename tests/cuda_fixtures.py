"""What the tests of ``tests/cuda`` share: bundles built for CUDA, and the fake CUDA's trace."""

from collections.abc import Callable

import pytest
from building import build
from cuda_trace import Trace

from bitdance_edge.runtime import Bundle


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
