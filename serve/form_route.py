"""Routes that take files as multipart/form-data, parsed within bounds on the number and size of its parts."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.settings import SMALL_BODY

MULTIPART = "multipart/form-data"
MOST_FILES, MOST_FIELDS = 34, 100  # two lists of 16 files and a mask; any field once, with room for unknown ones


class FormRoute(APIRoute):
    """A route of FastAPI that takes no other kind of form: it could hold no file, and is slow to parse."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "")
            if kind.partition(";")[0].strip().lower() != MULTIPART:
                message = f"Content-Type is {kind[:80]!r}; send a form with files, {MULTIPART}"
                raise ApiError(400, "invalid_content_type", message)
            return await handler(_FormRequest(request.scope, request.receive))

        return handle


class _FormRequest(Request):
    def form(self, **_: Any) -> Any:
        """Parse the form, within the bounds of this module whatever FastAPI's are."""
        return super().form(max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=SMALL_BODY)
