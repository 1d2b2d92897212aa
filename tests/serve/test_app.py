"""The HTTP API over real sockets, with work that takes no model: what it takes, what it refuses, and that nothing stays behind or leaks."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests
from serving import served, verdict

from dfdc_ray.serve import listen, receive
from dfdc_ray.serve.app import create_app
from dfdc_ray.serve.examine import Finding
from dfdc_ray.serve.jobs import Jobs, Limits, Refused

MOST = 1_000_000
CARD = {"model": "none"}


class Site:
    """A running page whose work is done when `go` is set; a file says what shall become of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.go = threading.Event()
        self.go.set()
        self.closed = False
        self.url = ""

    def work(self, path: Path, name: str, progress: Callable[[str, float | None], None]) -> Finding:
        progress("read", None)
        data = path.read_bytes()
        while not self.go.wait(0.01):
            progress("faces", 0.25)
        if data == b"bad":
            raise Refused("It is bad. Send another.")
        if data == b"broken":
            raise RuntimeError(f"no luck with {path}")
        document = {"size": len(data), "name": name}
        faces, printed = (b"face 0", b"face 1"), f"<p>{name}".encode()
        return Finding(document=document, faces=faces, heat={1: b"heat 1"}, maps=None, printed=printed)

    def close(self) -> None:
        self.closed = True

    def files(self) -> int:
        return len(list(self.folder.iterdir()))

    def send(self, data: bytes = b"fine", name: str = "a.mp4", **more: Any) -> requests.Response:
        return requests.post(f"{self.url}/api/videos", files={"file": (name, data)}, timeout=20, **more)

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=20, **more)

    def wait_for_files(self, number: int) -> None:
        end = time.monotonic() + 20
        while self.files() != number:
            assert time.monotonic() < end, f"{self.files()} files, not {number}"
            time.sleep(0.01)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Takes files up to MOST, and 30 in the queue."""
    site = Site(tmp_path)
    jobs = Jobs(tmp_path, site.work, Limits(max_bytes=MOST, waiting=30))
    with served(create_app(jobs, card=CARD, close=site.close)) as site.url:
        yield site
        site.go.set()
    assert site.closed
    assert site.files() == 0


def test_from_upload_to_deletion(site: Site) -> None:
    site.go.clear()
    answers = [site.send(b"x" * 70_000, "../x/a b.mp4"), site.send()]
    assert [answer.status_code for answer in answers] == [202, 202]
    first, second = (answer.json()["id"] for answer in answers)
    assert urljoin(answers[0].url, answers[0].json()["url"]) == f"{site.url}/api/videos/{first}"
    end = time.monotonic() + 20
    while (status := site.get(f"/api/videos/{first}").json())["stage"] != "faces":
        assert time.monotonic() < end
    assert (status["state"], status["share"], status["name"]) == ("working", 0.25, "a b.mp4")
    status = site.get(f"/api/videos/{second}").json()
    assert (status["state"], status["position"], status["result"]) == ("waiting", 1, None)
    assert site.get(f"/api/videos/{second}/result.json").status_code == 404
    site.go.set()
    assert verdict(site.url, first)["result"] == {"size": 70_000, "name": "a b.mp4"}
    assert 3500 < verdict(site.url, second)["expires_in_s"] <= 3600
    assert site.files() == 0
    at = f"/api/videos/{second}"
    found = {path: site.get(at + path) for path in ("/result.json", "/faces/1.jpg", "/heat/1.jpg", "/report.html")}
    assert [answer.status_code for answer in found.values()] == [200] * 4
    kinds = ["application/json", "image/jpeg", "image/jpeg", "text/html; charset=utf-8"]
    assert [answer.headers["content-type"] for answer in found.values()] == kinds
    assert found["/report.html"].text == "<p>a.mp4"
    for path in ("/faces/2.jpg", "/heat/0.jpg", "/maps.png", "/faces/-1.jpg", "/nothing"):
        assert site.get(at + path).status_code in (404, 422)
    assert requests.delete(site.url + at, timeout=20).status_code == 204
    assert [requests.delete(site.url + at, timeout=20).status_code, site.get(at).status_code] == [404, 404]


def test_other_fields_and_any_cutting_of_the_form_are_taken(site: Site) -> None:
    """Pieces of 7 bytes without a length, the file in the midst of other fields, and in it what looks like a boundary."""
    file = b"--edge\r\n--edg\r\n\r\n" * 50
    parts = [b'name="note"\r\n\r\nhello', b'name="file"; filename="a.mp4"\r\nContent-Type: video/mp4\r\n\r\n' + file, b'name="z"\r\n\r\n']
    body = b"".join(b"--the-edge\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--the-edge--\r\n"
    pieces = (body[i : i + 7] for i in range(0, len(body), 7))
    kind = {"Content-Type": "multipart/form-data; boundary=the-edge"}
    answer = requests.post(f"{site.url}/api/videos", data=pieces, headers=kind, timeout=20)
    assert answer.status_code == 202
    assert verdict(site.url, answer.json()["id"])["result"]["size"] == len(file)


def test_too_much_is_refused_while_it_comes(site: Site) -> None:
    assert site.send(b"x" * MOST).status_code == 202
    for body in (b"x" * (MOST + 1), b"x" * (3 * MOST)):
        answer = site.send(body)
        assert (answer.status_code, "1 MB" in answer.json()["detail"]) == (413, True)
    kind = {"Content-Type": FORM}
    endless = (piece for piece in [HEAD, *([b"x" * 65536] * 40)])  # chunked: no length is announced
    answer = requests.post(f"{site.url}/api/videos", data=endless, headers=kind, timeout=20)
    assert answer.status_code == 413
    site.wait_for_files(0)


FORM = "multipart/form-data; boundary=b"
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"abc", "video/mp4", "multipart"),
        (b"abc", "multipart/form-data", "multipart"),
        (b"abc", FORM, "damaged"),
        (HEAD.replace(b"file", b"other") + b"x\r\n--b--\r\n", FORM, "no video"),
        (HEAD + b"x", FORM, "cut off"),
        (HEAD + b"\r\n--b--\r\n", FORM, "empty"),
        (b"--b\r\nX: " + b"x" * 9000, FORM, "damaged"),
        (2 * (HEAD + b"x\r\n"), FORM, "more than one"),
    ],
)
def test_what_is_no_form_with_a_file_is_refused(site: Site, body: bytes, kind: str, said: str) -> None:
    answer = requests.post(f"{site.url}/api/videos", data=body, headers={"Content-Type": kind}, timeout=20)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert site.files() == 0


def test_twenty_at_once(site: Site) -> None:
    bodies = [bytes([n]) * (100_000 + n) for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(site.send, bodies))
        assert [answer.status_code for answer in answers] == [202] * 20
        found = list(pool.map(lambda answer: verdict(site.url, answer.json()["id"]), answers))
    assert [status["result"]["size"] for status in found] == [len(body) for body in bodies]
    assert site.files() == 0


def test_a_full_queue_says_when_to_come_back(site: Site) -> None:
    site.go.clear()
    answers = [site.send() for _ in range(33)]
    assert {answer.status_code for answer in answers[:30]} == {202}
    last = answers[-1]
    assert (last.status_code, last.headers["retry-after"]) == (503, "30")
    assert "Try again in 30 seconds" in last.json()["detail"]
    assert site.files() <= 31
    assert site.get("/healthz").json() == {"status": "ok"}


def request_of(url: str, length: int) -> bytes:
    """The beginning of an upload that announces so many bytes."""
    head = f"POST /api/videos HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: {FORM}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + HEAD


def test_a_client_that_hangs_up_leaves_nothing_behind(site: Site) -> None:
    at, head = urlsplit(site.url), request_of(site.url, 900_000)
    clients = []
    for _ in range(5):
        clients.append(socket.create_connection((str(at.hostname), int(at.port or 0)), timeout=20))
        clients[-1].sendall(head + b"x" * 100_000)
    site.wait_for_files(5)
    for client in clients:
        client.close()
    site.wait_for_files(0)
    assert verdict(site.url, site.send().json()["id"])["state"] == "done"


def test_a_client_that_falls_silent_loses_its_place(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_STALL_S", 0.3)
    with connected(site.url) as client:
        client.sendall(request_of(site.url, 900))
        assert b" 408 " in client.recv(100)
    assert site.files() == 0


def test_a_client_that_sends_a_byte_now_and_then_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_WHOLE_S", 1.0)
    at = urlsplit(site.url)
    with socket.create_connection((str(at.hostname), int(at.port or 0)), timeout=0.1) as client:
        client.sendall(request_of(site.url, 900))
        answer = b""
        for _ in range(100):
            try:
                answer = client.recv(100)
                break
            except TimeoutError:
                client.sendall(b"x")
        assert b" 408 " in answer
    assert site.files() == 0


def connected(url: str) -> socket.socket:
    at = urlsplit(url)
    return socket.create_connection((str(at.hostname), int(at.port or 0)), timeout=20)


def test_a_head_without_end_is_cut_off(site: Site) -> None:
    with connected(site.url) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        sent = 0
        with suppress(ConnectionError):
            while sent < 50_000_000:
                client.sendall(b"X-More: " + 4000 * b"x" + b"\r\n")
                sent += 4010
        assert sent < 10_000_000  # what the network's own buffers hold
    assert site.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"GET / HTT",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n",  # answered before its end
    ],
)
def test_a_connection_without_a_whole_request_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    """Also one that sends a byte now and then, and that has had an answer before."""
    monkeypatch.setattr(listen, "HEAD_S", 0.5)
    with connected(site.url) as client:
        client.sendall(first)
        client.settimeout(0.1)
        end, more = time.monotonic() + 10, iter(b"GET / HTTP/1.1\r\nX-Slow: " + 500 * b"x")
        with suppress(ConnectionError):
            while True:
                assert time.monotonic() < end, "it is open still"
                with suppress(TimeoutError):
                    if not client.recv(10_000):
                        break
                if first.endswith(b"\r\n\r\n"):
                    client.sendall(bytes([next(more)]))


def test_an_upload_may_take_longer_than_its_head(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEAD_S", 0.3)
    with connected(site.url) as client:
        client.sendall(request_of(site.url, len(HEAD) + 12))
        time.sleep(1)
        client.sendall(b"fine!\r\n--b--")
        assert b" 202 " in client.recv(10_000)


def test_a_full_disk_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(site.folder))

    monkeypatch.setattr("dfdc_ray.serve.jobs.Upload.write", full)
    answer = site.send()
    assert (answer.status_code, str(site.folder) in answer.text) == (507, False)
    assert site.files() == 0


def test_neither_answers_nor_logs_tell_of_the_inside(site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = verdict(site.url, site.send(b"bad").json()["id"])
    assert (bad["state"], bad["message"]) == ("failed", "It is bad. Send another.")
    broken = verdict(site.url, site.send(b"broken", "secret.mp4").json()["id"])
    assert broken["state"] == "failed"
    done = site.send(name="secret.mp4").json()["id"]
    verdict(site.url, done)

    def trouble(*_: object) -> None:
        raise RuntimeError(f"no luck in {site.folder}")

    monkeypatch.setattr(Jobs, "look", trouble)
    answer = site.get(f"/api/videos/{done}/report.html")
    assert answer.status_code == 500
    said = f"{bad} {broken['message']} {answer.text} {answer.headers} {caplog.text}"
    for secret in (str(site.folder), "Traceback", "secret.mp4", "no luck", done):
        assert secret not in said
    assert caplog.text.count("RuntimeError at test_app.py:") == 2


def test_headers_keep_the_page_to_itself(site: Site) -> None:
    for path in ("/", "/app.js", "/style.css", "/api/model", "/nothing", "/docs", "/openapi.json"):
        headers = site.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy
        assert ("unsafe" in policy) == (path == "/docs")  # style within the page; no script there
    page = site.get("/").text
    assert not re.search(r"<script(?! src=\"app\.js\")|\son\w+=|\sstyle=|https?://", page)


def test_other_web_sites_can_neither_read_nor_send(site: Site) -> None:
    port = urlsplit(site.url).port
    assert site.get("/api/model", headers={"Host": f"localhost:{port}"}).status_code == 200
    for host in (f"rebound.example:{port}", "", "[::1"):
        assert site.get("/api/model", headers={"Host": host}).status_code == 421
    assert site.send(headers={"Origin": "http://evil.example"}).status_code == 403
    assert site.send(headers={"Origin": "null"}).status_code == 403
    assert site.send(headers={"Origin": site.url}).status_code == 202


def test_a_server_in_front_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    site = Site(tmp_path)
    jobs = Jobs(tmp_path, site.work, Limits(max_bytes=MOST))
    with served(create_app(jobs, card=CARD, close=site.close, hosts=("page.example",))) as site.url:
        front = {"Host": "page.example", "Origin": "https://page.example"}  # which passes on what the browser asked it for
        assert site.get("/api/model", headers=front).status_code == 200
        assert site.send(headers=front).status_code == 202
        assert site.send(headers=front | {"Origin": "https://evil.example"}).status_code == 403
        assert site.get("/api/model").status_code == 421


def test_no_link_leads_out_of_the_path_below_which_a_server_in_front_puts_it(site: Site) -> None:
    front, sent = "http://page.example/scores/", site.send()
    assert urljoin(f"{front}api/videos", sent.json()["url"]) == f"{front}api/videos/{sent.json()['id']}"
    api = site.get("/openapi.json").json()
    assert urljoin(f"{front}openapi.json", api["servers"][0]["url"]) == front
    for path in ("", "docs"):
        links = re.findall(r"(?:href|src)=\"([^\"]+)\"", site.get(f"/{path}").text)
        inside = [urljoin(front + path, link) for link in links if not link.startswith("data:")]
        assert len(inside) >= 2
        assert all(link.startswith(front) for link in inside)
        assert {site.get(f"/{link.removeprefix(front)}").status_code for link in inside} == {200}


def test_the_api_describes_itself(site: Site) -> None:
    api = site.get("/openapi.json").json()
    for path, methods in api["paths"].items():
        for what in methods.values():
            assert what["summary"], path
            assert what["description"], path
    send = api["paths"]["/api/videos"]["post"]
    assert send["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"
    assert {"202", "413", "503"} <= send["responses"].keys()
    page = site.get("/docs")
    assert page.status_code == 200
    assert all(path in page.text for path in api["paths"])
    assert "<script" not in page.text
    assert site.get("/api/model").json()["limits"]["max_bytes"] == MOST
