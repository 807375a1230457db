"""What TensorRT-RTX compiles for a GPU when an engine is first used, kept in a file beside the engine.

The library checks that a cache was made by its own version on a GPU of this kind, and ignores it otherwise.
https://docs.nvidia.com/deeplearning/tensorrt-rtx/
"""

import logging
from pathlib import Path
from typing import Any

from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.errors import StorageError

log = logging.getLogger(__name__)


class RuntimeCache:
    """The cache of one engine, shared by all of its contexts.

    Args:
        engine: the engine's file; the cache is ``<stage>.runtime-cache`` in the same folder.
    """

    def __init__(self, engine: Path) -> None:
        self.path = engine.with_suffix(".runtime-cache")
        self._cache: Any = None
        self._kept = b""  # as in the file

    def use(self, config: Any) -> None:
        """Have a context that is made by this runtime configuration read and fill the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self.path.is_file():
                self._kept = self.path.read_bytes()
                if not self._cache.deserialize(self._kept):
                    log.info("%s is of another library or GPU, and is replaced", self.path)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since the file was read; a folder that cannot be written keeps nothing."""
        if self._cache is None:
            return
        blob = bytes(self._cache.serialize())
        self._cache = None
        if blob == self._kept:
            return
        try:
            with written_whole(self.path) as file:
                file.write(blob)
        except (OSError, StorageError) as error:
            log.info("%s is not kept: %s", self.path, error)
