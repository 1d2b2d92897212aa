"""The HTTP server of the score page: uvicorn's, with a limit on how large the head of a request is and how long it may take to come."""

import asyncio

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_BYTES = 1 << 15  # of a request's first line and headers
HEAD_S = 10.0  # from a connection's beginning, or a further head's, to its end; and for what is left of a body that nobody reads


class _Connection(H11Protocol):
    """Closed where no whole head has come in time, nor the rest of a body that was answered before its end.

    How long a body may take that somebody reads is for who reads it (serve/receive.py).
    """

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        unread = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if self.conn.their_state is not h11.IDLE and not unread:
            self._stop_waiting()
        elif self._overdue is None:
            self._overdue = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def server_of(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, end_s: int) -> uvicorn.Server:
    """Not started yet. end_s: how long requests under way may take once it shall exit."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host,
            port,
            http=_Connection,
            ws="none",
            h11_max_incomplete_event_size=HEAD_BYTES,
            log_config=None,
            access_log=False,  # its lines would hold the ids by which results can be seen
            server_header=False,
            timeout_graceful_shutdown=end_s,
        )
    )
