"""The key-value cache: allocated once at its final size, updated in place, with an explicit position."""

from bitdance_edge.runtime.backends.interface import Backend, Buffer
from bitdance_edge.runtime.bundle.manifest import Bundle


class KVCache:
    """Keys and values of ``rows`` rows; ``buffers`` has each under the name of the graph's input and its output."""

    def __init__(self, backend: Backend, bundle: Bundle, rows: int) -> None:
        spec = bundle.cache
        self.length = spec.length
        self.position = 0
        self.buffers: dict[str, Buffer] = {}
        for past, present in bundle.cache_names():
            # The graph's input and its output are the same memory.
            buffer = backend.empty((rows, spec.heads, spec.length, spec.head_dim), spec.dtype)
            self.buffers[past] = self.buffers[present] = buffer

    def reset(self) -> None:
        """Start another image. Old values in the slots are finite, and masked until they are replaced."""
        self.position = 0

    def advance(self, tokens: int) -> None:
        self.position += tokens
