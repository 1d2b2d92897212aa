"""The two kinds of trouble that have a name here: what a person must put right, and what is wrong with one video."""

from typing import Literal

Stage = Literal["open", "probe", "decode", "align", "detect", "crop", "sound"]


class UserError(Exception):
    """Something the person at the keyboard can put right. Shown as one message without a traceback; exit code 1.

    The message says what was wrong, in which file or option, and what to do.
    """


class VideoError(Exception):
    """One video cannot be processed. It becomes a ledger row with this stage and message; the job goes on."""

    def __init__(self, stage: Stage, message: str) -> None:
        super().__init__(message)
        self.stage: Stage = stage
        self.message = message

    def __reduce__(self) -> tuple:  # two arguments: Exception's own pickling would keep one
        return (type(self), (self.stage, self.message))


class VideoGone(VideoError):
    """The file is not there (any more), in a place that is: its ledger row says `missing`."""


class StorageError(Exception):
    """Storage or the machine failed (5xx, disk full, time-out), not the video: retried, then reported as not done, never a receipt."""
