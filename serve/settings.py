"""The settings of a server, validated once, here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bitdance_edge.runtime.request import MAX_STEPS
from bitdance_edge.serve.errors import ServeError

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
DAY = 86_400.0
TOKEN_VARIABLE = "BITDANCE_EDGE_TOKEN"  # of the environment
SMALL_BODY = 64 * 2**10  # bytes of a body on routes that take no picture
BODY_BUDGET = 64 * 2**20  # bytes of all larger bodies that are in flight
CHARACTER = 4  # bytes of a character in UTF-8, at most
# The least and the largest value of each number.
BOUNDS: dict[str, tuple[float, float]] = {
    "queue": (1, 10_000),
    "max_batch": (1, 1024),
    "batch_window": (0, 60),
    "time_limit": (0.001, DAY),
    "max_images": (1, 1024),
    "max_steps": (1, MAX_STEPS),
    "max_prompt": (1, SMALL_BODY // CHARACTER),
    "max_body": (1024, BODY_BUDGET),
    "max_connections": (8, 10_000),
    "keep_alive": (0.001, DAY),
    "grace": (0, DAY),
    "stuck_after": (0.001, DAY),
}


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings and limits of a server. Times are in seconds, sizes in bytes.

    Attributes:
        bundles: folders of bundles. A model's id is the name of its folder; the first model is the default.
        aliases: further names of models, for clients that have one built in.
        devices: one worker process is started for each.
        threads: the number of threads of each graph; None: one for each physical core, or 1 for a small model.
        queue: the number of requests that may wait; more are refused with 429.
        max_batch: the largest number of images in a batch.
        batch_window: how long a free worker waits for more requests of the same shape.
        time_limit: how long a request may take, from its acceptance to its last image.
        max_images: images of one request.
        max_steps: sampling steps of one request.
        max_prompt: characters of a prompt, and of a negative prompt.
        max_body: largest request body with a picture; others take 64 KiB.
        max_connections: open connections; further ones are refused with 503.
        nearest_size: a size that the model does not make is replaced by its nearest one.
        memory: what generation may use; None: what is available when the server starts.
        token: bearer token, required of every request except for the page and /health; None: no token is required.
        local_only: whether the server listens on this machine only; a Host that is not local is then refused.
        hosts: further names that clients may use for this server. Where it is not ``local_only``, one refuses others.
        origins: sites whose pages may use the API (CORS); "*": all.
        log_prompts: whether prompts are written into the log.
        grace: how long a stopping server lets its requests finish before it cancels them.
        keep_alive: the longest silence on a stream; then a comment is sent.
        stuck_after: how long a worker may take to obey a cancellation before it is killed and restarted.
    """

    bundles: tuple[Path, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
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
    max_connections: int = 256
    nearest_size: bool = False
    memory: int | None = None
    token: str | None = None
    local_only: bool = True
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    log_prompts: bool = False
    grace: float = 10.0
    keep_alive: float = 10.0
    stuck_after: float = 60.0

    def accepts_host(self, name: str) -> bool:
        """Whether requests may name this server so, in their Host without its port."""
        if not self.local_only and not self.hosts:
            return True
        return name.lower() in (*LOCAL_NAMES, *(host.lower() for host in self.hosts))

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:  # false for nan
                raise ServeError(f"{name.replace('_', '-')} is {value}; it must be from {least:,} to {most:,}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ServeError(f"threads is {self.threads}; it must be from 1 to 1,024")
        if self.memory is not None and self.memory < 1:
            raise ServeError("memory leaves not one byte; give the megabytes that generation may use")
        if not self.devices:
            raise ServeError("devices are empty; name at least one, or omit the option for auto")
        if len(set(self.devices)) != len(self.devices):
            raise ServeError(f"devices are {', '.join(self.devices)}; each gets one worker, so name it once")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and len(self.token) >= 8):
            raise ServeError("the token must be at least 8 printable ASCII characters, on one line")
        if self.token is not None and self.token != self.token.strip():
            raise ServeError("the token begins or ends with a space, which HTTP does not transmit; omit it")
        for origin in self.origins:
            _check_origin(origin)
        for name in self.hosts:
            port = ":" in name and not (name.startswith("[") and name.endswith("]"))
            if not name or not name.isascii() or not name.isprintable() or set(name) & set(" /@*") or port:
                raise ServeError(
                    f"allow-host is {name[:80]!r}; it must be a host name as clients send it, without port"
                )


def _check_origin(origin: str) -> None:
    """Raises: ServeError: not what browsers send as Origin."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    if origin == "*" or origin == f"{parts.scheme}://{host}" + (f":{port}" if port else ""):
        return
    raise ServeError(f"cors is {origin[:80]!r}; it must be an origin such as https://example.org:8080, or *")
