"""Storage that fails: what fails is tried again with pauses, and a file that alone cannot be read is told from a storage that cannot."""

import time
from collections.abc import Callable
from typing import TypeVar

from dfdc_ray.corpus.neighbours import neighbour_is_readable
from dfdc_ray.errors import StorageError
from dfdc_ray.preprocess.plan import Video
from dfdc_ray.preprocess.supervise import Unreadable, Worker
from dfdc_ray.preprocess.unit import Guide, VideoResult, ledger_row

T = TypeVar("T")
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between tries


def process_patiently(worker: Worker, video: Video, guide: Guide | None) -> VideoResult:
    """One video's result; StorageError after all tries. A file that alone cannot be read is an `error`, as what is beside it can be."""
    assert video.uri is not None
    try:
        return patiently(lambda: worker.process(video, guide))
    except Unreadable:
        if not neighbour_is_readable(video.uri):
            raise
    try:
        return worker.process(video, guide)  # the trouble may have passed just now
    except Unreadable as error:
        return VideoResult(ledger_row(video, status="error", stage="open", error=f"{error} (what is beside it can be read)"))


def patiently(call: Callable[[], T]) -> T:
    """The call's result; while storage fails, called again after pauses."""
    for pause in _PAUSES_S:
        try:
            return call()
        except StorageError:
            time.sleep(pause)
    return call()
