"""What one server is told when it starts, validated once, here."""

import math
from dataclasses import dataclass
from pathlib import Path

from bitdance_edge.runtime.request import MAX_STEPS
from bitdance_edge.serve.errors import ServeError

POSITIVE = ("queue", "max_batch", "time_limit", "max_images", "max_steps", "max_prompt", "max_body", "keep_alive")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Limits and choices of a server. Times are seconds, sizes bytes.

    Attributes:
        bundles: folders; a model is called as its bundle's folder, and the first one is the default.
        devices: one worker process each.
        threads: of each graph; None is one a physical core.
        queue: requests that may wait; one more is refused with 429.
        max_batch: images that run together.
        batch_window: how long a free worker waits for more requests of the same shape.
        time_limit: from a request's acceptance to its last image.
        max_body: largest request body.
        max_prompt: longest prompt, in characters.
        memory: what generation may use; None is what is available when the server starts.
        token: bearer token that every request but those for the page and /health must carry; None asks for none.
        local_only: listening on this machine alone, where only local names are taken as the Host.
        grace: how long a stopping server lets its requests finish before it cancels them.
        stuck_after: a worker that has not heeded a cancellation by then is killed and started again.
    """

    bundles: tuple[Path, ...]
    devices: tuple[str, ...] = ("auto",)
    threads: int | None = None
    queue: int = 64
    max_batch: int = 16
    batch_window: float = 0.005
    time_limit: float = 300.0
    max_images: int = 10
    max_steps: int = 200
    max_prompt: int = 4000
    max_body: int = 16 * 2**20
    memory: int | None = None
    token: str | None = None
    local_only: bool = True
    log_prompts: bool = False
    grace: float = 10.0
    keep_alive: float = 10.0
    stuck_after: float = 60.0

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ServeError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be greater than 0")
        for name in ("batch_window", "grace"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ServeError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be 0 or more seconds")
        if self.max_steps > MAX_STEPS:
            raise ServeError(f"max-steps is {self.max_steps}; it must be from 1 to {MAX_STEPS}")
        if len(set(self.devices)) != len(self.devices):
            raise ServeError(f"devices are {', '.join(self.devices)}; each gets one worker, name it once")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and len(self.token) >= 8):
            raise ServeError("the token must be at least 8 printable ASCII characters, on one line")
