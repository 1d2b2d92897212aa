"""Reads the one file of a multipart/form-data request, piece by piece as it comes: it is never in memory as a whole."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

FIELD = "file"
OVERHEAD = 1 << 16  # bytes that a request may have besides its file
_STALL_S = 60.0  # without a byte: the client is gone, and holds a place in the queue
_WHOLE_S = 1800.0  # for the whole request: nobody holds a place by sending a byte now and then


class BadForm(Exception):
    """The request is no form with one file in it. The message is for whoever sent it."""


class Stalled(Exception):
    """Nothing has come for a while, or not all of it within the time for it. The message is for whoever sent it."""


async def receive_file(request: Request, write: Callable[[bytes], object], *, most: int) -> str:
    """Hand the file's bytes to `write` and return its name as the sender gives it ("" for none).

    most: bytes of the whole request, beyond which BadForm; `write` may refuse before. Starlette's ClientDisconnect: the client has hung up.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise BadForm(f"The request must be multipart/form-data with the video in the field {FIELD!r}.")
    form = _Form(write)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        total = 0
        async for piece in _unless_stalled(request.stream()):
            parser.write(piece)
            total += len(piece)
            if total > most:
                raise BadForm("The request holds more than the video.")
        parser.finalize()
    except FormParserError as error:
        raise BadForm("The form is damaged.") from error
    if form.files == 0:
        raise BadForm(f"There is no video in the field {FIELD!r}.")
    if not form.ended:
        raise BadForm("The form was cut off before its end.")
    return form.name


async def _unless_stalled(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    ends = time.monotonic() + _WHOLE_S
    while True:
        try:
            yield await asyncio.wait_for(anext(pieces), min(_STALL_S, ends - time.monotonic()))
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            if time.monotonic() < ends:
                raise Stalled("The upload stopped before its end. Try again.") from error
            late = f"The upload took more than {_WHOLE_S / 60:g} minutes."
            raise Stalled(f"{late} Cut the video shorter, write it with a lower bit rate, or use a faster line.") from error


class _Form:
    """Follows the parser through the parts; the first one named FIELD is the file, others are passed over."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write
        self.files, self.name, self.ended = 0, "", False
        self._header, self._value = b"", b""  # their length is limited by the parser
        self._taking = False

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._header, self._value, self._taking = b"", b"", False

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            if options.get(b"name") == FIELD.encode():
                self.files += 1
                if self.files > 1:
                    raise BadForm("The form holds more than one video: send each by itself.")
                self.name = options.get(b"filename", b"").decode("utf-8", "replace")
                self._taking = True
        self._header, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._taking:
            self.write(data[start:end])

    def _end(self) -> None:
        self.ended = True
