"""The fault proxy does what it says, and nothing else."""

import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from fault_proxy import FAULTS, FaultProxy

BODY = bytes(range(256)) * 1000


class Server(BaseHTTPRequestHandler):
    """Answers GET with BODY (chunked at /chunked), and PUT with what the request was."""

    protocol_version = "HTTP/1.1"
    seen: list[str] = []  # noqa: RUF012 (of all requests)

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (BODY[:1000], BODY[1000:], b""):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        else:
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(self.path)
        said = f"{self.headers['Host']} {len(body)}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *arguments: object) -> None:
        """Not on the test's output."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def connect(proxy: FaultProxy) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=10)


def test_without_faults_all_passes_unchanged_and_is_counted(server):
    with FaultProxy(server, rate=0, seed=0) as proxy:
        client = connect(proxy)
        for path in ("/plain", "/chunked"):
            client.request("GET", path)
            assert client.getresponse().read() == BODY
        client.request("PUT", "/p", body=BODY, headers={"Host": "bucket.example", "Expect": "100-continue"})
        assert client.getresponse().read() == f"bucket.example {len(BODY)}".encode()  # a signature covers the host
        client.close()
    assert proxy.requests == {"GET": 2, "PUT": 1}
    assert not proxy.faulted
    assert proxy.received > len(BODY)
    assert proxy.sent > 2 * len(BODY)


@pytest.mark.parametrize(("fault", "status", "code"), [("500", 500, b"InternalError"), ("503", 503, b"SlowDown")])
def test_an_error_is_answered_without_the_server(server, fault, status, code):
    with FaultProxy(server, rate=1, seed=0, faults=(fault,)) as proxy:
        client = connect(proxy)
        for _ in range(2):  # on the same connection
            client.request("PUT", "/p", body=BODY)
            answer = client.getresponse()
            assert answer.status == status
            assert code in answer.read()
        client.close()
    assert Server.seen == []
    assert proxy.faulted == {fault: 2}


@pytest.mark.parametrize(("fault", "reaches_the_server"), [("refused", False), ("lost", True), ("cut", True), ("late", False)])
def test_a_connection_that_breaks(server, fault, reaches_the_server):
    with FaultProxy(server, rate=1, seed=0, faults=(fault,), late_s=0.2) as proxy:
        client = connect(proxy)
        with pytest.raises((ConnectionError, http.client.HTTPException)):  # noqa: PT012 (which of the two steps it is, is a race)
            client.request("GET", "/plain")
            client.getresponse().read()
        client.close()
    assert Server.seen == (["/plain"] if reaches_the_server else [])


def test_a_body_that_drips(server):
    with FaultProxy(server, rate=1, seed=0, faults=("slow",), slow_s=0.4) as proxy:
        client = connect(proxy)
        client.request("GET", "/plain")
        answer = client.getresponse()
        start = time.monotonic()
        assert answer.read() == BODY
        assert time.monotonic() - start > 0.2
        client.close()


def test_the_rate_is_kept_and_the_seed_repeats_it(server):
    drawn = []
    for _ in range(2):
        proxy = FaultProxy(server, rate=0.3, seed=7)
        drawn.append([proxy.draw("GET") for _ in range(1000)])
        proxy._server.server_close()
    assert drawn[0] == drawn[1]
    assert 250 < sum(fault is not None for fault in drawn[0]) < 350
    assert set(drawn[0]) == {None, *FAULTS}
