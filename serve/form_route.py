"""Routes that take files as multipart/form-data, parsed within bounds on the number and size of its parts."""

import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException

from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.settings import SMALL_BODY

MULTIPART = "multipart/form-data"
CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")  # others decode to what is no text, take long, or fail
MOST_FILES, MOST_FIELDS = 34, 100  # two lists of 16 files and a mask; any field once, with room for unknown ones
MOST_PADDING = 256  # spaces and tabs after a boundary: the parser takes them one by one, without a limit


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

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the portions of the body. Raises: MultiPartException: a boundary has more than MOST_PADDING."""
        boundary = b"\r\n--" + parse_options_header(self.headers["content-type"])[1].get(b"boundary", b"")
        padded = re.compile(re.escape(boundary) + rb"[ \t]{%d}" % (MOST_PADDING + 1))
        end = b""  # of the portions before, in which a padded boundary may begin
        async for portion in super().stream():
            seen = end + portion
            if padded.search(seen):
                raise MultiPartException(f"More than {MOST_PADDING} spaces follow a boundary; send none.")
            end = seen[-len(boundary) - MOST_PADDING :]
            yield portion
