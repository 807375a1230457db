"""Routes that take files as multipart/form-data, parsed within bounds on the number and size of its parts."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header

from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.settings import SMALL_BODY

MULTIPART = "multipart/form-data"
CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")  # others decode to what is no text, take long, or fail
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
            charset = parse_options_header(kind)[1].get(b"charset", b"utf-8").decode("latin-1")
            if charset.lower() not in CHARSETS:
                raise ApiError(400, "invalid_content_type", f"charset is {charset[:80]!r}; send the texts in UTF-8")
            return await handler(_FormRequest(request.scope, request.receive))

        return handle


class _FormRequest(Request):
    def form(self, **_: Any) -> Any:
        """Parse the form, within the bounds of this module whatever FastAPI's are."""
        return super().form(max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=SMALL_BODY)
