"""A proxy before an S3 server that does what S3 does on a bad day: 500, 503 SlowDown, answers that come too late, and connections reset
before, amid and after the work. It counts requests, bytes and faults.

    with FaultProxy(server.endpoint, rate=0.05, seed=1) as proxy: ...    # clients use proxy.endpoint

Everything else passes unchanged, the Host header too: the request's signature covers it, so the server sees the proxy's address as its own.
"""

import random
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO
from urllib.parse import urlsplit

# 500 and 503: answered here. late: no answer before the client has lost patience. refused: reset at once.
# lost: the server did what was asked, the answer is reset. cut: reset half-way through the answer's body. slow: the body drips.
FAULTS = ("500", "503", "late", "refused", "lost", "cut", "slow")
_ERRORS = {"500": ("500 Internal Server Error", "InternalError"), "503": ("503 Slow Down", "SlowDown")}
_BLOCK = 64 << 10
_DRIPS = 20


class FaultProxy:
    """Listens on `host`. `rate` of the requests meet with one of `faults`, drawn anew for each; both may be changed while it runs."""

    def __init__(
        self,
        target: str,
        *,
        rate: float,
        seed: int,
        faults: tuple[str, ...] = FAULTS,
        late_s: float = 30.0,
        slow_s: float = 3.0,
        host: str = "127.0.0.1",
    ) -> None:
        """target: http://host:port of the server. late_s: how long an answer that is late waits. slow_s: a slow body takes."""
        parts = urlsplit(target)
        assert parts.hostname
        assert parts.port
        self.target = (parts.hostname, parts.port)
        self.rate, self.faults, self.late_s, self.slow_s = rate, faults, late_s, slow_s
        self.requests: Counter[str] = Counter()  # by method
        self.faulted: Counter[str] = Counter()  # by fault
        self.received = self.sent = 0  # bytes of requests and of answers, as clients see them
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = _Server((host, 0), self)
        self.endpoint = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self, method: str) -> str | None:
        """Count a request; the fault that it shall meet, if any."""
        with self._lock:
            self.requests[method] += 1
            fault = self._random.choice(self.faults) if self.faults and self._random.random() < self.rate else None
            if fault:
                self.faulted[fault] += 1
            return fault

    def count(self, *, received: int = 0, sent: int = 0) -> None:
        """Add to the bytes."""
        with self._lock:
            self.received += received
            self.sent += sent


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Connection)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client or the server that went away is what this is for."""


class _Connection(socketserver.StreamRequestHandler):
    """One client's connection, with one of its own to the server."""

    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        proxy = self.server.proxy
        with suppress(OSError, EOFError), socket.create_connection(proxy.target) as upstream:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = upstream.makefile("rb")
            while self._exchange(proxy, upstream, answers):
                pass

    def _exchange(self, proxy: FaultProxy, upstream: socket.socket, answers: BinaryIO) -> bool:  # noqa: PLR0911
        """One request and its answer; False when the connection is over."""
        head = _read_head(self.rfile)
        if head is None:
            return False
        method = head.split(b" ", 1)[0].decode()
        fault = proxy.draw(method)
        if fault == "refused":
            return self._reset()
        if b"\r\nexpect: 100-continue" in head.lower():  # not signed; answered here, so that one answer belongs to one request
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _exactly(self.rfile, int(_header(head, b"content-length") or 0))
        proxy.count(received=len(head) + len(body))
        if fault == "late":
            time.sleep(proxy.late_s)
            return False
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            text = b"" if method == "HEAD" else f"<Error><Code>{code}</Code><Message>a fault on purpose</Message></Error>".encode()
            said = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text
            self.wfile.write(said)
            proxy.count(sent=len(said))
            return True
        upstream.sendall(head + body)
        answer = _read_head(answers)
        if answer is None:
            return False
        whole = _answer_body(answer, method, answers)
        if fault == "lost":
            return self._reset()
        if fault == "cut":
            self.wfile.write(answer + whole[: len(whole) // 2])
            self.wfile.flush()
            return self._reset()
        self.wfile.write(answer)
        step = -(-len(whole) // _DRIPS) if fault == "slow" else len(whole)
        for i in range(0, len(whole), step or 1):
            if fault == "slow":
                time.sleep(proxy.slow_s / _DRIPS)
            self.wfile.write(whole[i : i + step])
        proxy.count(sent=len(answer) + len(whole))
        return b"connection: close" not in (head + answer).lower()

    def _reset(self) -> bool:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() then sends RST
        self.connection.close()
        return False


def _read_head(file: BinaryIO) -> bytes | None:
    """A start line and headers with the blank line after them; None at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = file.readline(_BLOCK)
        if not line:
            return None
        head += line
    return head


def _header(head: bytes, name: bytes) -> str | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode()
    return None


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _answer_body(head: bytes, method: str, file: BinaryIO) -> bytes:
    """The body as it came, with the marks of its chunks."""
    status = int(head.split(b" ", 2)[1])
    if method == "HEAD" or status in (204, 304):
        return b""
    if (length := _header(head, b"content-length")) is not None:
        return _exactly(file, int(length))
    if "chunked" not in (_header(head, b"transfer-encoding") or ""):
        return file.read()
    body = b""
    while True:
        size_line = file.readline(_BLOCK)
        size = int(size_line.split(b";")[0], 16)
        body += size_line + _exactly(file, size) + file.readline(_BLOCK)
        if size == 0:
            return body
