"""The HTTP API of the score page: send a video, ask how far it is, look at the evidence, delete it."""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from dfdc_ray.serve.examine import Finding
from dfdc_ray.serve.jobs import Busy, Jobs, Look, State, TooLarge
from dfdc_ray.serve.receive import FIELD, OVERHEAD, BadForm, Stalled, receive_file
from dfdc_ray.serve.result import Result

RETRY_AFTER_S = 30  # where the queue is full
# Pages in one file have their style within them, and no script.
POLICY_OF_PAGES = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HTML = "text/html; charset=utf-8"


class Accepted(BaseModel):
    """A video has been taken and queues up."""

    id: str = Field(description="Names the video from now on. Who knows it may see and delete the result; it cannot be guessed.")
    url: str = Field(description="Where to ask how far it is, relative to the address of this request.")


class Status(BaseModel):
    """How far a video is."""

    id: str
    name: str = Field(description="The file's name as it was sent, without folders.")
    state: State = Field(description="waiting, working, done or failed.")
    position: int | None = Field(description="While waiting: its place in the queue, 1 for the next.")
    stage: str | None = Field(
        description="While working: read, faces (decoding and looking for faces), score, heat (heat maps), or report."
    )
    share: float | None = Field(description="While working: how much of the stage is done, 0 to 1, where that is known.")
    message: str | None = Field(description="When failed: what was wrong with the file, and what to do.")
    result: Result | None = Field(description="When done: what result.json says.")
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
    408: {"model": Problem, "description": "Nothing came for a minute, or not all within half an hour."},
    413: {"model": Problem, "description": "The file is too large."},
    503: {"model": Problem, "description": "The queue is full; Retry-After says when to try again."},
    507: {"model": Problem, "description": "There is no room for the file."},
}


def videos(jobs: Jobs[Finding]) -> APIRouter:
    """Sending, asking and deleting."""
    router = APIRouter(tags=["videos"])
    max_mb = f"{jobs.limits.max_bytes / 1e6:g} MB"

    @router.post("/api/videos", status_code=202, openapi_extra=_UPLOAD, responses=_REFUSALS, summary="Send a video")
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
        except Stalled as error:
            raise HTTPException(408, str(error)) from error
        except ClientDisconnect as error:
            raise HTTPException(408, "The upload stopped before its end. Try again.") from error
        except OSError as error:
            raise HTTPException(507, "The server has no room for the video. Try again later.") from error
        return Accepted(id=job_id, url=f"videos/{job_id}")

    @router.get("/api/videos/{job_id}", response_model=Status, responses=_NOT_FOUND, summary="Ask how far a video is")
    async def status(job_id: Id) -> JSONResponse:
        """Ask again every second or so, until the state is done or failed."""
        found = _look(jobs, job_id)
        return JSONResponse(
            {
                "id": found.id,
                "name": found.name,
                "state": found.state,
                "position": found.position,
                "stage": found.stage,
                "share": found.share,
                "message": found.message,
                "result": found.result.document if found.result is not None else None,
                "expires_in_s": found.expires_s,
            }
        )

    @router.delete("/api/videos/{job_id}", status_code=204, responses=_NOT_FOUND, summary="Forget a video")
    async def delete(job_id: Id) -> None:
        """Deletes the file, if it is still there, and everything that was found, whatever the state."""
        if not jobs.delete(job_id):
            _look(jobs, job_id)

    return router


def evidence(jobs: Jobs[Finding]) -> APIRouter:
    """What was found in videos that are done."""
    router = APIRouter(tags=["evidence"])

    @router.get("/api/videos/{job_id}/result.json", response_model=Result, responses=_NOT_FOUND, summary="The result as JSON")
    async def result_json(job_id: Id) -> JSONResponse:
        """What `dfdc-ray predict --json` says, and `faces`: one for each picture, by its number; `frames_without_face`; what it means."""
        return JSONResponse(_finding(jobs, job_id).document)

    @router.get("/api/videos/{job_id}/report.html", response_class=Response, responses=_file("text/html"), summary="A report to print")
    async def report_html(job_id: Id) -> Response:
        """One page in one file, without scripts."""
        return Response(_finding(jobs, job_id).printed, media_type=HTML, headers={"Content-Security-Policy": POLICY_OF_PAGES})

    @router.get("/api/videos/{job_id}/faces/{n}.jpg", response_class=Response, responses=_file("image/jpeg"), summary="A face")
    async def face(job_id: Id, n: Number) -> Response:
        """As it was cut out for the model; of a model that looks at clips, the first frame of the clip."""
        faces = _finding(jobs, job_id).faces
        if n >= len(faces):
            raise HTTPException(404, f"There are {len(faces)} faces.")
        return Response(faces[n], media_type="image/jpeg")

    @router.get("/api/videos/{job_id}/heat/{n}.jpg", response_class=Response, responses=_file("image/jpeg"), summary="A heat map")
    async def heat(job_id: Id, n: Number) -> Response:
        """The face with the places that spoke for a fake (Grad-CAM): from violet to yellow."""
        if (picture := _finding(jobs, job_id).heat.get(n)) is None:
            raise HTTPException(404, "This face has no heat map.")
        return Response(picture, media_type="image/jpeg")

    @router.get("/api/videos/{job_id}/maps.png", response_class=Response, responses=_file("image/png"), summary="Maps of the model")
    async def own_maps(job_id: Id) -> Response:
        """What models show of themselves: attention, differences of frames, the motion of colour. Not every model does."""
        if (picture := _finding(jobs, job_id).maps) is None:
            raise HTTPException(404, "The model has no maps of its own.")
        return Response(picture, media_type="image/png")

    return router


def _file(kind: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}}}}} | _NOT_FOUND


def _look(jobs: Jobs[Finding], job_id: str) -> Look[Finding]:
    if (found := jobs.look(job_id)) is None:
        raise HTTPException(404, "No such video: it was deleted, its time is over, or the server was started again.")
    return found


def _finding(jobs: Jobs[Finding], job_id: str) -> Finding:
    if (result := _look(jobs, job_id).result) is None:
        raise HTTPException(404, "This video has no result (yet).")
    return result
