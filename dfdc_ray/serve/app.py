"""The score page and its HTTP API, as a FastAPI application over a queue of jobs. Knows nothing of Ray.

Whoever reaches it may upload, and whoever knows an id may see and delete what belongs to it: it is meant for the machine that it runs on.
"""

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dfdc_ray import __version__
from dfdc_ray.pages import render
from dfdc_ray.serve.api import HTML, POLICY_OF_PAGES, Problem, evidence, videos
from dfdc_ray.serve.examine import Finding
from dfdc_ray.serve.jobs import Jobs, place_of

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PAGE = {"": "index.html", "style.css": "style.css", "app.js": "app.js"}
_KINDS = {"html": HTML, "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_log = logging.getLogger(__name__)


_DESCRIPTION = """How likely is a video a deepfake? Send it, ask until it is done, look at the evidence, delete it.

    curl -F file=@clip.mp4 http://127.0.0.1:8000/api/videos
    curl http://127.0.0.1:8000/api/videos/ID

A video is deleted from the server as soon as it is scored. A score is evidence, not proof."""


def create_app(
    jobs: Jobs[Finding],
    *,
    card: dict[str, Any],
    close: Callable[[], None],
    hosts: tuple[str, ...] | None = LOOPBACK,
) -> FastAPI:
    """The application; its state holds the jobs. card: what GET /api/model says. close: called at its end, after the jobs are closed.

    hosts: the names by which it may be asked for, so that no other web site can have a browser read it under a name of its own; None: any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(jobs.close)
        close()

    app = FastAPI(
        title="dfdc-ray",
        version=__version__,
        description=_DESCRIPTION,
        servers=[{"url": "."}],  # where openapi.json is: a server in front may put all below a path
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        debug=False,
    )
    app.state.jobs = jobs
    app.add_middleware(_Guard, hosts=hosts)
    app.include_router(videos(jobs))
    app.include_router(evidence(jobs))

    @app.get("/api/model", summary="What scores here", tags=["model"])
    async def model() -> dict[str, Any]:
        """The model's card, and the limits for a video."""
        return card | {"limits": {"max_bytes": jobs.limits.max_bytes, "waiting": jobs.limits.waiting, "keep_s": jobs.limits.keep_s}}

    @app.get("/healthz", responses={503: {"model": Problem}}, summary="Whether it works", tags=["model"])
    async def healthz() -> dict[str, str]:
        """200 while videos are worked on."""
        if not jobs.alive:
            raise HTTPException(503, "The worker has ended.")
        return {"status": "ok"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        page = render("api.html", title="dfdc-ray: HTTP API", made_from="openapi.json", api=app.openapi())
        return Response(page, media_type=HTML, headers={"Content-Security-Policy": POLICY_OF_PAGES})

    @app.get("/", include_in_schema=False)
    @app.get("/{name}", include_in_schema=False)
    async def page(name: str = "") -> Response:
        if name not in _PAGE:
            raise HTTPException(404, "There is no such page.")
        return Response(_file(_PAGE[name]), media_type=_KINDS[_PAGE[name].rpartition(".")[2]])

    return app


@functools.cache
def _file(name: str) -> bytes:
    return resources.files("dfdc_ray.serve").joinpath("page", name).read_bytes()


class _Guard:
    """Around everything: headers on every answer, no answer under foreign names or to foreign pages, no traceback of what went wrong."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name.lower() for name, _ in message["headers"]}
                more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in given)]
            await send(message)

        try:
            await self._answer(scope)(scope, receive, send_on)
        except Exception as error:  # the queue goes on; its text could name paths
            _log.error("%s: %s%s", scope["method"], type(error).__name__, place_of(error))
            if not started:
                await JSONResponse({"detail": "Something went wrong here. Try again."}, 500)(scope, receive, send_on)

    def _answer(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.hosts is not None and _name(f"//{host}") not in self.hosts:
            return JSONResponse({"detail": "This server is not known by that name."}, 421)
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            return JSONResponse({"detail": "Requests of other web sites are not taken."}, 403)
        return self.app


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
