"""The ASGI application: routes, the page, and one JSON form for all errors."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from bitdance_edge.serve.connection import ClientLeft
from bitdance_edge.serve.errors import SERVER, ApiError
from bitdance_edge.serve.field_errors import field_error
from bitdance_edge.serve.guard import Guard
from bitdance_edge.serve.routes import about, edits, images, jobs, sdapi, tokens
from bitdance_edge.serve.service import Service

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
ROUTES = (images, edits, jobs, tokens, sdapi, about)
CLIENT_CLOSED = 499  # nginx's status for a client that disconnected


def create_app(service: Service, *, supervised: bool = False) -> FastAPI:
    """Build the ASGI application of a service, which starts and stops with it.

    Args:
        supervised: whether a supervisor waits for both: the application then starts when its workers are ready, raising
            ServeError where they do not start, and stops when the requests that it accepted are done.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start())
        if supervised:
            await starting
            if service.failure is not None:
                raise service.failure
        yield
        starting.cancel()
        if supervised:
            await service.drain()
        await service.stop()

    # FastAPI's documentation pages load scripts from other hosts; /openapi.json is kept.
    app = FastAPI(
        title="bitdance-edge",
        version=version("bitdance-edge"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    app.add_middleware(Guard, settings=service.settings, methods=_methods)
    if service.settings.origins:  # the outermost, so that errors of the guard can be read too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.origins,
            allow_methods=["GET", "HEAD", "POST", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=["Location", "Retry-After"],
        )
    for routes in ROUTES:
        app.include_router(routes.router)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_route("/", _page, include_in_schema=False)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ClientLeft, _client_left)
    app.add_exception_handler(Exception, _unexpected)
    return app


# Handlers, routes and dependencies are coroutines: plain functions would run in threads, which get no turn while the
# loop works in bursts shorter than the interpreter's switch interval, as the parser of forms does.
async def _page(_request: Request) -> FileResponse:
    return FileResponse(PAGE / "index.html")


def _methods(scope: Scope) -> set[str]:
    """The methods that a path has; none if there is no such path."""
    path: str = scope["path"]
    routes = (route for module in ROUTES for route in module.router.routes if isinstance(route, APIRoute))
    found = {method for route in routes if route.matches(scope)[0] != Match.NONE for method in route.methods or ()}
    if path in ("/", "/openapi.json") or path.startswith("/page/"):
        found.add("GET")
    return found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()) if found else found


def _error_response(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(request.url.path), error.status, error.headers)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _error_response(request, error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _error_response(request, ApiError(error.status_code, code, message, headers=error.headers))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """Report the first field that pydantic found to be wrong."""
    assert isinstance(error, RequestValidationError)
    return _error_response(request, field_error(error.errors()))


async def _client_left(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse(None, CLIENT_CLOSED)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error_response(request, ApiError(500, "internal_error", "the server failed; see its log", kind=SERVER))
