"""What the routes share: the service, and the responses that the OpenAPI document lists."""

from typing import Annotated, Any

from fastapi import Depends, Request

from bitdance_edge.serve.schema import Error
from bitdance_edge.serve.service import Service

MEANINGS = {
    400: "A field has an invalid value; `param` names it.",
    401: "The bearer token is missing or wrong.",
    404: "No such model, job or page.",
    409: "The request was cancelled.",
    413: "The prompt is too long, or the request too large.",
    429: "The queue is full; `Retry-After` says when to try again.",
    503: "Not ready, restarting or stopping.",
    504: "The request was not done within the time limit.",
    507: "One image does not fit in memory.",
}


def event_stream(description: str) -> dict[str, Any]:
    """The response of a route that sends server-sent events, each with its name and JSON."""
    event = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
    return {"description": description, "content": {"text/event-stream": {"schema": event}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for the OpenAPI document."""
    documented: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": MEANINGS[status]} for status in statuses
    }
    return {**documented, "default": {"model": Error, "description": "Any other error."}}


async def _service(request: Request) -> Service:
    return request.app.state.service


TheService = Annotated[Service, Depends(_service)]
