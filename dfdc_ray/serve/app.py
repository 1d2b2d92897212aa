"""The score page and its HTTP API, as a FastAPI application over a queue of jobs. Knows nothing of Ray.

Whoever reaches it may upload, and whoever knows an id may see and delete what belongs to it: it is meant for the machine that it runs on.
"""

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dfdc_ray import __version__
from dfdc_ray.pages import render
from dfdc_ray.serve.examine import Finding
from dfdc_ray.serve.jobs import Busy, Jobs, Look, State, TooLarge, place_of
from dfdc_ray.serve.receive import FIELD, OVERHEAD, BadForm, Stalled, receive_file

RETRY_AFTER_S = 30  # where the queue is full
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PAGE = {"": "index.html", "style.css": "style.css", "app.js": "app.js"}
_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Pages in one file have their style within them, and no script.
_POLICY_OF_PAGES = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
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


class Accepted(BaseModel):
    """A video has been taken and queues up."""

    id: str = Field(description="Names the video from now on. Who knows it may see and delete the result; it cannot be guessed.")
    url: str = Field(description="Where to ask how far it is.")


class Status(BaseModel):
    """How far a video is."""

    id: str
    name: str = Field(description="The file's name as it was sent, without folders.")
    state: State = Field(description="waiting, working, done or failed.")
    position: int | None = Field(description="While waiting: its place in the queue, 1 for the next.")
    stage: str | None = Field(description="While working: read, faces (decoding and looking for faces), score, or heat (heat maps).")
    share: float | None = Field(description="While working: how much of the stage is done, 0 to 1, where that is known.")
    message: str | None = Field(description="When failed: what was wrong with the file, and what to do.")
    result: dict[str, Any] | None = Field(description="When done: what result.json says.")
    expires_in_s: float | None = Field(description="When done or failed: seconds until it is forgotten; sooner where many others follow.")


class Problem(BaseModel):
    """What went wrong, for people."""

    detail: str


Id = Annotated[str, Path(description="As POST /api/videos gave it.")]
Number = Annotated[int, Path(ge=0, description="Of the face, as in `faces` of result.json.")]
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such video (any more), or it is not done."}}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary", "description": "The video."}},
                }
            }
        },
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "No form with one file in it, or an empty file."},
    408: {"model": Problem, "description": "Nothing came for a minute."},
    413: {"model": Problem, "description": "The file is too large."},
    503: {"model": Problem, "description": "The queue is full; Retry-After says when to try again."},
    507: {"model": Problem, "description": "There is no room for the file."},
}
_DESCRIPTION = """How likely is a video a deepfake? Send it, ask until it is done, look at the evidence, delete it.

    curl -F file=@clip.mp4 http://127.0.0.1:8000/api/videos
    curl http://127.0.0.1:8000/api/videos/ID

A video is deleted from the server as soon as it is scored. A score is evidence, not proof."""


def create_app(
    jobs: Jobs[Finding],
    *,
    card: dict[str, Any],
    report: Callable[[Finding], bytes],
    close: Callable[[], None],
    hosts: tuple[str, ...] | None = LOOPBACK,
) -> FastAPI:
    """The application. card: what GET /api/model says. close: called at its end, after the jobs are closed.

    hosts: the names by which it may be asked for, so that no other web site can have a browser read it under a name of its own; None: any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(jobs.close)
        close()

    app = FastAPI(
        title="dfdc-ray", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan, debug=False
    )
    app.add_middleware(_Guard, hosts=hosts)
    max_mb = f"{jobs.limits.max_bytes / 1e6:g} MB"

    def look(job_id: str) -> Look[Finding]:
        if (found := jobs.look(job_id)) is None:
            raise HTTPException(404, "No such video: it was deleted, its time is over, or the server was started again.")
        return found

    def finding(job_id: str) -> Finding:
        if (result := look(job_id).result) is None:
            raise HTTPException(404, "This video has no result (yet).")
        return result

    @app.post("/api/videos", status_code=202, openapi_extra=_UPLOAD, responses=_REFUSALS, summary="Send a video", tags=["videos"])
    async def send(request: Request) -> Accepted:
        """Takes one file of any format that FFmpeg can read, told from its content. It queues up, is scored, and is then deleted."""
        too_large = f"The video is larger than {max_mb}. Cut it shorter, or write it with a lower bit rate."
        most = jobs.limits.max_bytes + OVERHEAD
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise HTTPException(413, too_large)
        try:
            with jobs.receive() as upload:
                name = await receive_file(request, upload.write, most=most)
                if upload.received == 0:
                    raise BadForm("The file is empty. Choose it again; if it stays so, download or copy it again.")
                job_id = upload.finish(name)
        except Busy as error:
            wait = {"Retry-After": str(RETRY_AFTER_S)}
            raise HTTPException(503, f"Too many videos wait. Try again in {RETRY_AFTER_S} seconds.", wait) from error
        except TooLarge as error:
            raise HTTPException(413, too_large) from error
        except BadForm as error:
            raise HTTPException(400, str(error)) from error
        except (Stalled, ClientDisconnect) as error:
            raise HTTPException(408, "The upload stopped before its end. Try again.") from error
        except OSError as error:
            raise HTTPException(507, "The server has no room for the video. Try again later.") from error
        return Accepted(id=job_id, url=f"/api/videos/{job_id}")

    @app.get("/api/videos/{job_id}", responses=_NOT_FOUND, summary="Ask how far a video is", tags=["videos"])
    async def status(job_id: Id) -> Status:
        """Ask again every second or so, until the state is done or failed."""
        found = look(job_id)
        result = found.result.document if found.result is not None else None
        return Status(
            id=found.id,
            name=found.name,
            state=found.state,
            position=found.position,
            stage=found.stage,
            share=found.share,
            message=found.message,
            result=result,
            expires_in_s=found.expires_s,
        )

    @app.delete("/api/videos/{job_id}", status_code=204, responses=_NOT_FOUND, summary="Forget a video", tags=["videos"])
    async def delete(job_id: Id) -> None:
        """Deletes the file, if it is still there, and everything that was found, whatever the state."""
        if not jobs.delete(job_id):
            look(job_id)

    @app.get("/api/videos/{job_id}/result.json", responses=_NOT_FOUND, summary="The result as JSON", tags=["evidence"])
    async def result_json(job_id: Id) -> dict[str, Any]:
        """What `dfdc-ray predict --json` says, and `faces`: one for each picture, by its number; `frames_without_face`; what it means."""
        return finding(job_id).document

    @app.get(
        "/api/videos/{job_id}/report.html", response_class=Response, responses=_NOT_FOUND, summary="A report to print", tags=["evidence"]
    )
    async def report_html(job_id: Id) -> Response:
        """One page in one file, without scripts."""
        page = await run_in_threadpool(report, finding(job_id))
        return Response(page, media_type=_KINDS["html"], headers={"Content-Security-Policy": _POLICY_OF_PAGES})

    @app.get("/api/videos/{job_id}/faces/{n}.jpg", response_class=Response, responses=_NOT_FOUND, summary="A face", tags=["evidence"])
    async def face(job_id: Id, n: Number) -> Response:
        """As it was cut out for the model; of a model that looks at clips, one frame of the clip."""
        faces = finding(job_id).faces
        if n >= len(faces):
            raise HTTPException(404, f"There are {len(faces)} faces.")
        return Response(faces[n], media_type="image/jpeg")

    @app.get("/api/videos/{job_id}/heat/{n}.jpg", response_class=Response, responses=_NOT_FOUND, summary="A heat map", tags=["evidence"])
    async def heat(job_id: Id, n: Number) -> Response:
        """The face with the places that spoke for a fake (Grad-CAM): from violet to yellow."""
        if (picture := finding(job_id).heat.get(n)) is None:
            raise HTTPException(404, "This face has no heat map.")
        return Response(picture, media_type="image/jpeg")

    @app.get("/api/videos/{job_id}/maps.png", response_class=Response, responses=_NOT_FOUND, summary="Maps of the model", tags=["evidence"])
    async def own_maps(job_id: Id) -> Response:
        """What models show of themselves: attention, differences of frames, the motion of colour. Not every model does."""
        if (picture := finding(job_id).maps) is None:
            raise HTTPException(404, "The model has no maps of its own.")
        return Response(picture, media_type="image/png")

    @app.get("/api/model", summary="What scores here", tags=["model"])
    async def model() -> dict[str, Any]:
        """The model's card, and the limits for a video."""
        return card | {"limits": {"max_bytes": jobs.limits.max_bytes, "waiting": jobs.limits.waiting, "keep_s": jobs.limits.keep_s}}

    @app.get("/healthz", responses={503: {"model": Problem}}, summary="Does it work?", tags=["model"])
    async def healthz() -> dict[str, str]:
        """200 while videos are worked on."""
        if not jobs.alive:
            raise HTTPException(503, "The worker has ended.")
        return {"status": "ok"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        page = render("api.html", title="dfdc-ray: HTTP API", made_from="/openapi.json", api=app.openapi())
        return Response(page, media_type=_KINDS["html"], headers={"Content-Security-Policy": _POLICY_OF_PAGES})

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
