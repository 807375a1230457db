"""Routes whose JSON is parsed by orjson within bounds: no lone surrogates, no NaN, limited depth and number of values.

Bodies over SMALL_BODY are parsed in a thread.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from bitdance_edge.serve.settings import SMALL_BODY

MOST_VALUES = 10_000
DEPTH = 32


class JsonRoute(APIRoute):
    """A route of FastAPI that gets its body from ``parsed``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        value = parsed(body) if len(body) <= SMALL_BODY else await asyncio.to_thread(parsed, body)
        self._body = b""  # what it held is in the value; the request may wait long for its images
        return value


def parsed(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        json.JSONDecodeError: not JSON as in RFC 8259, or over MOST_VALUES or DEPTH; FastAPI reports ``json_invalid``.
    """
    # Every value but the first follows one of these; texts may have them too, so this counts too many, never too few.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MOST_VALUES:
        raise json.JSONDecodeError(f"it has more than {MOST_VALUES:,} commas and brackets", "", 0)
    value = orjson.loads(body)
    level, depth = [value], 0
    while level := [child for each in level for child in _children(each)]:
        depth += 1
        if depth > DEPTH:
            raise json.JSONDecodeError(f"it is nested more than {DEPTH} deep", "", 0)
    return value


def _children(value: Any) -> list[Any]:
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [child for child in inside if isinstance(child, dict | list)]
