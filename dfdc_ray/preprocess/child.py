"""The process that decodes, detects and crops: one video at a time, under a memory limit, for a supervisor that can kill it.

    python -m dfdc_ray.preprocess.child FD      (started by supervise.py; FD is an inherited socket)

Limits on C code cannot be kept from inside, so the deadline is the supervisor's; the memory limit is the kernel's (RLIMIT_DATA).
"""

import ctypes
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from dfdc_ray import storage
from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.faces.detect import load_detector
from dfdc_ray.preprocess.plan import Video
from dfdc_ray.preprocess.settings import Settings
from dfdc_ray.preprocess.unit import Guide, VideoResult, ledger_row, process_video

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Answer requests until the supervisor closes the connection.

    In: first (settings, memory limit in bytes, seconds of the longest video or None), then (video, guide) for each video.
    Out: ("ready",), then for each video any number of ("stage", name), one ("traffic", Traffic), and one of ("result", VideoResult),
    ("storage", message).
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # do not outlive a killed supervisor
    connection = Connection(int(sys.argv[1]))
    settings, memory, longest_s = connection.recv()
    detector = None
    if settings.crop == "face":
        detector = load_detector(settings.detector, threshold=settings.detector_threshold, long_side=settings.detector_long_side)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves nothing of a video on the disk
    connection.send(("ready",))
    while True:
        try:
            video, guide = connection.recv()
        except EOFError:
            return
        connection.send(_answer(connection, video, guide, settings, detector, longest_s=longest_s))
        with suppress(AttributeError):  # glibc has it: else it keeps what videos of other sizes needed, up to 100 MB
            libc.malloc_trim(0)


def _answer(
    connection: Connection, video: Video, guide: Guide | None, settings: Settings, detector: Any, *, longest_s: float | None
) -> tuple[str, Any]:
    stage = "open"

    def on_stage(name: str) -> None:
        nonlocal stage
        stage = name
        connection.send(("stage", name))

    before = storage.traffic()
    try:
        result = process_video(video, settings, detector, guide, on_stage=on_stage, longest_s=longest_s)
    except (StorageError, UserError) as error:  # UserError: access that is denied in mid-video, as when a token expires
        return "storage", str(error)
    except Exception as error:  # a library's own trouble with one video: it is charged, with its name
        result = VideoResult(ledger_row(video, status="error", stage=stage, error=f"{type(error).__name__}: {error}"))
    finally:
        connection.send(("traffic", storage.traffic() - before))
    result.traffic = storage.traffic() - before
    return "result", result


if __name__ == "__main__":
    main()
