"""The one Ray cluster of a test run: a head, and where a test needs it another node, all on this machine."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # with 127.0.0.1 drivers find no node
CPUS = 2  # of each node, whatever the machine has
STORE = 80 * 2**20  # bytes of memory for what the processes of a node share
# A node waits 15 s for its agents to start, which a busy machine may not give them; this gives them longer.
PATIENCE = {"RAY_agent_register_timeout_ms": "300000", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """A cluster whose nodes have loopback addresses of their own. The second one is there from ``start_other`` on."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.other: Any = None
        self._add(HEAD)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def start_other(self) -> None:
        """Start the second node."""
        self.other = self._add(OTHER)

    def kill_other(self) -> None:
        """Kill the second node, with all that runs on it."""
        other, self.other = self.other, None
        self.cluster.remove_node(other, allow_graceful=False)

    def _add(self, address: str) -> Any:
        return twice(
            lambda: self.cluster.add_node(
                num_cpus=CPUS, node_ip_address=address, object_store_memory=STORE, include_dashboard=False
            )
        )


def twice(start: Callable[[], Any]) -> Any:
    """Start something of Ray; once more where that failed: it has 30 s, which a busy machine may not give it."""
    try:
        return start()
    except Exception:  # of several kinds
        return start()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Nodes]:
    """The cluster, to which no process is connected."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in PATIENCE.items():
            environment.setenv(name, value)
        started = Nodes()
        yield started
        started.cluster.shutdown()


@pytest.fixture(scope="module")
def connected(ray_cluster: Nodes) -> Iterator[Nodes]:
    """The cluster, with this process as a driver while a module's tests run."""
    ray = pytest.importorskip("ray")
    quiet = {"log_to_driver": False, "configure_logging": False}
    twice(lambda: ray.init(ray_cluster.address, _node_ip_address=HEAD, namespace="bitdance-edge", **quiet))
    yield ray_cluster
    ray.shutdown()
