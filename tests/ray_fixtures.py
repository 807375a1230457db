"""One Ray cluster for all tests that need one."""

from collections.abc import Iterator

import pytest


OBJECTS = 80 * 2**20  # bytes of memory for what processes share


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A cluster of this machine, without dashboard; it pretends to have enough CPUs."""
    ray = pytest.importorskip("ray")

    def start() -> None:
        quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        ray.init(num_cpus=8, namespace="bitdance-edge", object_store_memory=OBJECTS, **quiet)

    try:
        start()
    except Exception:  # Ray's own: a node has 30 s to start, which a busy machine may not give it
        ray.shutdown()
        start()
    yield
    ray.shutdown()
