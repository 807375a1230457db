"""Waits for a server that was just started."""

import time
import urllib.request


def wait_until_ready(address: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/readyz", timeout=10).close()
        except OSError:  # 503 until every worker has loaded its bundle
            time.sleep(0.2)
        else:
            return
    raise SystemExit("the server was not ready in two minutes")
