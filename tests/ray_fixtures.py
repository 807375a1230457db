"""One Ray cluster for all tests that need one."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A cluster of this machine, without dashboard; it pretends to have enough CPUs."""
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=8,
        namespace="bitdance-edge",
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()
