"""The settings of a server, validated once, here."""

import math
from dataclasses import dataclass
from pathlib import Path

from bitdance_edge.runtime.request import MAX_STEPS
from bitdance_edge.serve.errors import ServeError

POSITIVE = ("queue", "max_batch", "time_limit", "max_images", "max_steps", "max_prompt", "max_body", "keep_alive")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings and limits of a server. Times are in seconds, sizes in bytes.

    Attributes:
        bundles: folders of bundles. A model's id is the name of its folder; the first model is the default.
        devices: one worker process is started for each.
        threads: the number of threads of each graph; None: one for each physical core.
        queue: the number of requests that may wait; more are refused with 429.
        max_batch: the largest number of images in a batch.
        batch_window: how long a free worker waits for more requests of the same shape.
        time_limit: how long a request may take, from its acceptance to its last image.
        max_images: images of one request.
        max_steps: sampling steps of one request.
        max_prompt: characters of a prompt.
        max_body: largest request body.
        memory: what generation may use; None: what is available when the server starts.
        token: bearer token, required of every request except for the page and /health; None: no token is required.
        local_only: whether the server listens on this machine only; a Host that is not local is then refused.
        log_prompts: whether prompts are written into the log.
        grace: how long a stopping server lets its requests finish before it cancels them.
        keep_alive: the longest silence on a stream; then a comment is sent.
        stuck_after: how long a worker may take to obey a cancellation before it is killed and restarted.
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
            raise ServeError(f"devices are {', '.join(self.devices)}; each gets one worker, so name it once")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and len(self.token) >= 8):
            raise ServeError("the token must be at least 8 printable ASCII characters, on one line")
