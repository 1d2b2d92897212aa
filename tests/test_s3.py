"""S3 as it is met: requests few, bytes no more than needed, both counted right; faults survived; trouble in one clear line, no secrets."""

import io
import json
import os
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import urllib3
from botocore.response import StreamingBody
from fault_proxy import FaultProxy
from s3_server import S3, forget_connections

from dfdc_ray import s3 as module
from dfdc_ray import storage
from dfdc_ray.config import PreprocessConfig
from dfdc_ray.corpus import zips
from dfdc_ray.corpus.index import build_index
from dfdc_ray.corpus.zips import list_members, open_video
from dfdc_ray.errors import StorageError, UserError, VideoError, VideoGone
from dfdc_ray.preprocess.plan import Video, units
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.preprocess.unit import Guide, VideoResult, process_unit, process_video
from dfdc_ray.video.decode import decode_frames, probe

pytestmark = [pytest.mark.s3, pytest.mark.timeout(120)]

HEADERS = 2048  # bytes; of an answer
SLACK = 4096  # bytes that a member may cost besides its own: local headers, extra fields, data descriptors


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that counts, and makes faults once its `rate` is set; this process goes through it."""
    with FaultProxy(s3.endpoint, rate=0, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_connections()
        yield proxy
        forget_connections()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses pass 50 times as fast, and nobody waits long for an answer."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 50))
    monkeypatch.setattr(module, "READ_S", 0.5)


class Watch:
    """What has passed the proxy since the last look, by its count, once ours is seen to agree."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.last = self._now()

    def _now(self) -> tuple[int, int, storage.Traffic]:
        sent = -1
        while sent != self.proxy.sent:  # it counts an answer once that is sent
            sent = self.proxy.sent
            threading.Event().wait(0.1)  # whatever became of time.sleep
        return self.proxy.requests.total(), sent, storage.traffic()

    def look(self) -> tuple[int, int]:
        """(requests, bytes of bodies)"""
        now = self._now()
        requests, sent, ours = now[0] - self.last[0], now[1] - self.last[1], now[2] - self.last[2]
        assert ours.requests == requests
        assert ours.bytes <= sent <= ours.bytes + HEADERS * requests
        self.last = now
        return requests, ours.bytes


@pytest.fixture(scope="module", params=["moov at the end", "moov at the start"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mp4 of about 2 MB, 16 frames of noise."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    options = {"movflags": "faststart"} if request.param == "moov at the start" else {}
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for _ in range(16):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (360, 640, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert (data.index(b"moov") < data.index(b"mdat")) == (request.param == "moov at the start")
    return data


def frames_of(file: io.BufferedIOBase) -> list[bytes]:
    """As preprocess reads a video: its packets, then the wanted frames."""
    with file:
        info = probe(file)
        return [rgb.tobytes() for _, rgb in decode_frames(file, info, [0, 7, 15])]


class Pipe(io.RawIOBase):
    """Where zipfile cannot seek back, so it writes sizes and CRCs after the data (data descriptors)."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += data
        return len(data)


def plain(clip: bytes, *, compression: int = zipfile.ZIP_STORED, extra: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name in ("dfdc_train_part_0/a.mp4", "dfdc_train_part_0/b.mp4", "dfdc_train_part_0/metadata.json"):
            info = zipfile.ZipInfo(name)
            info.compress_type, info.extra = compression, extra
            archive.writestr(info, clip if name.endswith("mp4") else b"{}")
    return out.getvalue()


def piped(clip: bytes) -> bytes:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name in ("dfdc_train_part_0/a.mp4", "dfdc_train_part_0/b.mp4"):
            with archive.open(name, "w") as member:
                member.write(clip)
    return bytes(pipe.data)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "unpadded": plain,
    "data descriptors": piped,
    "padded": lambda clip: plain(clip, extra=b"\xfe\xca\x00\x08" + bytes(2048)),
    "deflated": lambda clip: plain(clip, compression=zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_video_in_a_zip_costs_one_request_and_its_own_bytes(s3: S3, proxy: FaultProxy, clip: bytes, form: str) -> None:
    uri = storage.join(s3.uri, "dfdc_train_part_00.zip")
    storage.write_bytes(uri, FORMS[form](clip))
    expected = frames_of(io.BytesIO(clip))
    watch = Watch(proxy)
    assert frames_of(open_video(f"{uri}!/dfdc_train_part_0/a.mp4")) == expected
    requests, received = watch.look()  # with the directory, which a process reads once
    assert requests <= 2
    assert received <= len(clip) + SLACK + storage.S3_TAIL
    for _ in range(2):
        assert frames_of(open_video(f"{uri}!/dfdc_train_part_0/b.mp4")) == expected
        requests, received = watch.look()
        assert requests == 1
        assert received <= len(clip) + SLACK


def test_a_video_in_a_zip_in_a_zip_costs_as_much(s3: S3, proxy: FaultProxy, clip: bytes) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("inner.zip", plain(clip))
        archive.writestr("filling.bin", bytes(storage.S3_TAIL))  # so that nothing of it comes along by chance
    uri = storage.join(s3.uri, "all.zip")
    storage.write_bytes(uri, out.getvalue())
    watch = Watch(proxy)
    inner = f"{uri}!/inner.zip!/dfdc_train_part_0"
    assert open_video(f"{inner}/a.mp4").read() == clip
    assert watch.look()[0] <= 6  # two directories, a local header each
    assert open_video(f"{inner}/b.mp4").read() == clip
    requests, received = watch.look()
    assert requests <= 2
    assert received <= len(clip) + SLACK


def test_a_video_by_itself_costs_its_own_bytes_in_one_request_or_two(
    s3: S3, proxy: FaultProxy, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(s3.uri, "a.mp4")
    storage.write_bytes(uri, clip)
    watch = Watch(proxy)
    assert frames_of(open_video(uri)) == frames_of(io.BytesIO(clip))
    assert watch.look() == (1, len(clip))
    monkeypatch.setattr(storage, "S3_HEAD", 1 << 20)
    assert frames_of(open_video(uri)) == frames_of(io.BytesIO(clip))
    assert watch.look() == (2, len(clip))


@pytest.mark.parametrize("place", ["a.mp4", "x.zip!/dfdc_train_part_0/a.mp4"])
def test_a_video_too_large_for_memory_is_read_in_windows(
    s3: S3, proxy: FaultProxy, clip: bytes, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zips, "MAX_WHOLE", len(clip) - 1)
    monkeypatch.setattr(storage, "S3_BUFFER", 1 << 20)
    monkeypatch.setattr(storage, "S3_HEAD", 1 << 20)
    storage.write_bytes(storage.join(s3.uri, "a.mp4"), clip)
    storage.write_bytes(storage.join(s3.uri, "x.zip"), plain(clip))
    watch = Watch(proxy)
    with open_video(storage.join(s3.uri, place)) as file:
        assert isinstance(file, storage.Input)
        assert frames_of(file) == frames_of(io.BytesIO(clip))
    requests, received = watch.look()
    assert requests <= 16  # twice: three windows, and to moov and back; once: the zip's directory and the local header
    assert received <= 2 * len(clip) + 4 * (1 << 20) + storage.S3_TAIL


def test_indexing_a_zip_reads_its_directory_and_tables_only(s3: S3, proxy: FaultProxy, clip: bytes) -> None:
    uri = storage.join(s3.uri, "x.zip")
    storage.write_bytes(uri, plain(clip))
    watch = Watch(proxy)
    assert len(list_members(uri)) == 3
    zips.read_bytes(f"{uri}!/dfdc_train_part_0/metadata.json")
    requests, received = watch.look()
    assert requests <= 2
    assert received <= storage.S3_TAIL + SLACK


def test_a_directory_of_thousands_is_read_in_one_piece(s3: S3, proxy: FaultProxy) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(2500):
            archive.writestr(f"dfdc_train_part_0/{number:010d}.mp4", b"x")
    uri = storage.join(s3.uri, "x.zip")
    storage.write_bytes(uri, out.getvalue())
    watch = Watch(proxy)
    members = list_members(uri)
    assert len(members) == 2500
    assert watch.look()[0] == 2
    assert open_video(members[1000].uri).read() == b"x"
    assert watch.look()[0] == 1


def test_a_zip_that_was_replaced_is_read_anew_and_one_that_is_gone_is_missing(s3: S3, clip: bytes) -> None:
    uri = storage.join(s3.uri, "x.zip")
    storage.write_bytes(uri, plain(b"1"))
    member = f"{uri}!/dfdc_train_part_0/b.mp4"
    assert open_video(member).read() == b"1"
    storage.write_bytes(uri, plain(b"2"))  # as long as before
    assert open_video(member).read() == b"2"
    storage.delete(uri)
    for absent in (member, storage.join(s3.uri, "gone.mp4")):
        with pytest.raises(VideoGone, match="not found"):
            open_video(absent)
    for absent in ("s3://no-such-bucket-here/x.mp4", "s3://no-such-bucket-here/x.zip!/x.mp4"):
        with pytest.raises(StorageError, match="no such bucket"):
            open_video(absent)


def test_a_video_that_goes_between_index_and_reading_is_missing_and_a_bucket_that_goes_condemns_none(s3: S3, clip: bytes) -> None:
    bucket = f"going-{uuid.uuid4().hex}"
    client = s3.server.client()
    client.create_bucket(Bucket=bucket)
    folder = f"s3://{bucket}/part"
    labels = {"real.mp4": {"label": "REAL"}} | {f"{x}.mp4": {"label": "FAKE", "original": "real.mp4"} for x in "ab"}
    storage.write_bytes(f"{folder}/metadata.json", json.dumps(labels).encode())
    for name in labels:
        storage.write_bytes(f"{folder}/{name}", clip)
    (unit,) = units(build_index([folder])[0])
    settings = settings_of(PreprocessConfig(corpus=(folder,), out="unused", frames=2, crop="frame"))

    def process(video: Video, guide: Guide | None) -> VideoResult:
        return process_video(video, settings, None, guide)

    storage.delete(f"{folder}/a.mp4")
    rows = {row["video_id"]: row for row in (video.ledger for video in process_unit(unit, process).videos)}
    assert {name: row["status"] for name, row in rows.items()} == {"part/real.mp4": "ok", "part/a.mp4": "missing", "part/b.mp4": "ok"}
    assert rows["part/a.mp4"]["stage"] == "open"
    assert f"{folder}/a.mp4" in rows["part/a.mp4"]["error"]

    storage.delete(folder)
    client.delete_bucket(Bucket=bucket)
    with pytest.raises(StorageError, match="no such bucket"):
        process_unit(unit, process)


def test_a_file_that_is_replaced_while_it_is_read_is_a_storage_error(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "S3_TAIL", 10)
    uri = storage.join(s3.uri, "x.bin")
    for change in (lambda: storage.write_bytes(uri, bytes(2000)), lambda: storage.delete(uri)):
        storage.write_bytes(uri, os.urandom(2000))
        with storage.open_input(uri) as file:
            change()
            with pytest.raises(StorageError, match="was replaced or deleted"):
                file.read(5)


def test_empty_and_small_objects(s3: S3) -> None:
    uri = storage.join(s3.uri, "empty")
    storage.write_bytes(uri, b"")
    assert storage.stat(uri).size == 0
    assert storage.read_bytes(uri) == storage.open_input(uri).read() == storage.open_whole(uri, 10).read() == b""
    storage.write_bytes(uri, b"x")
    assert storage.open_input(uri).read() == storage.open_whole(uri, 1).read() == storage.open_whole(uri, 0).read() == b"x"


def test_a_long_listing_comes_in_pages(s3: S3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 3)
    names = [f"{n}.json" for n in range(8)]
    for name in [*names, "sub/x", "sub/y", "sub-z"]:
        storage.write_bytes(storage.join(s3.uri, name), b"")
    watch = Watch(proxy)
    assert [e.name for e in storage.list_dir(s3.uri)] == [*names, "sub", "sub-z"]
    assert watch.look()[0] == 4


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", ["500", "503", "late", "refused", "lost", "cut"])
def test_now_and_then_a_fault_is_not_noticed(s3: S3, proxy: FaultProxy, fault: str) -> None:
    data = os.urandom(3_000_000)
    watch = Watch(proxy)
    proxy.rate, proxy.faults, proxy.late_s = 0.25, (fault,), 100.0  # 2 s, as pauses pass here
    for name in "abcdef":
        storage.write_bytes(storage.join(s3.uri, name), data)
        assert storage.read_bytes(storage.join(s3.uri, name)) == data
    storage.create_once(storage.join(s3.uri, "once"), b"x")
    assert storage.read_bytes(storage.join(s3.uri, "once")) == b"x"
    assert len(storage.list_dir(s3.uri)) == 7
    assert proxy.faulted[fault] > 0
    if fault != "cut":  # what is cut off was received in part, and is on neither count as a whole
        watch.look()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", ["503", "late", "refused", "cut"])
def test_a_server_that_stays_bad_is_given_up_soon(s3: S3, proxy: FaultProxy, fault: str) -> None:
    storage.write_bytes(storage.join(s3.uri, "a"), bytes(10_000))
    proxy.rate, proxy.faults, proxy.late_s, proxy.requests = 1.0, (fault,), 100.0, proxy.requests.__class__()
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"/a: the (S3 server (does not answer|answers SlowDown)|connection broke)"):
        storage.read_bytes(storage.join(s3.uri, "a"))
    assert proxy.requests.total() == module.TRIES
    assert time.monotonic() - start < 2 * module.TRIES * module.READ_S


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "ExpiredToken", "the session token has expired"),
        (400, "InvalidToken", "session token is not valid"),
        (403, "InvalidAccessKeyId", "it does not know this access key id"),
        (403, "SignatureDoesNotMatch", "secret access key is wrong"),
        (403, "RequestTimeTooSkewed", "clock is wrong"),
        (403, "AccessDenied", "bucket's policy"),
        (404, "NoSuchBucket", "no such bucket"),
    ],
)
def test_what_aws_answers_becomes_one_clear_line(s3: S3, monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str) -> None:
    """In Amazon's words, which no other server uses in full."""
    said = f"<Error><Code>{code}</Code><Message>secret words</Message><AWSAccessKeyId>{s3.server.access_key}</AWSAccessKeyId></Error>"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said.encode())

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        forget_connections()
        for act in ("stat", "list_dir", "read_bytes", "open_input", "write_bytes", "create_once", "delete"):
            with pytest.raises(UserError, match=message) as caught:
                getattr(storage, act)("s3://some-bucket/key", *([b"x"] if act in ("write_bytes", "create_once") else []))
            for secret in ("secret words", s3.server.access_key, s3.server.secret_key):
                assert secret not in str(caught.value)
        with pytest.raises((StorageError, VideoError), match=message):  # says nothing about the video
            open_video("s3://some-bucket/key.mp4")
        server.shutdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIAWRONGWRONGWRONG"}, "it does not know this access key id"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "secret access key is wrong"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no usable AWS credentials"),
        ({"AWS_PROFILE": "not-there"}, "no usable AWS credentials"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "not a URL"),
        ({"AWS_ENDPOINT_URL": "KEY:secret-in-the-wrong-place@host"}, "not a URL"),
    ],
)
def test_wrong_credentials_are_one_clear_line(s3: S3, changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    forget_connections()
    for act in (storage.read_bytes, storage.list_dir, lambda uri: storage.write_bytes(uri, b""), lambda uri: storage.create_once(uri, b"")):
        with pytest.raises(UserError, match=message) as caught:
            act(storage.join(s3.uri, "x"))
        assert "\n" not in str(caught.value)
        for secret in (s3.server.secret_key, *(v for n, v in changes.items() if "KEY" in n + v and v)):
            assert secret not in str(caught.value)


def test_a_connection_that_breaks_below_http_is_tried_again(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TLS finds in mid-body comes as urllib3's own error, which boto3 lets pass."""
    uri = storage.join(s3.uri, "x")
    storage.write_bytes(uri, b"0123456789")
    pieces, broken = StreamingBody.iter_chunks, iter([True])

    def breaks(body: StreamingBody, size: int) -> Iterator[bytes]:
        for piece in pieces(body, 4):
            yield piece
            if next(broken, False):
                raise urllib3.exceptions.SSLError("DECRYPTION_FAILED_OR_BAD_RECORD_MAC")

    monkeypatch.setattr(StreamingBody, "iter_chunks", breaks)
    assert storage.read_bytes(uri) == b"0123456789"
    assert next(broken, None) is None


def test_credentials_come_from_the_standard_files_too(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {s3.server.access_key}\naws_secret_access_key = {s3.server.secret_key}\n"
    )
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {s3.endpoint}\nregion = us-east-1\n")
    uri = storage.join(s3.uri, "x")
    storage.write_bytes(uri, b"content")
    environment = {k: v for k, v in s3.environment.items() if not k.startswith("AWS_")} | {
        "AWS_PROFILE": "lab",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }
    code = f"from dfdc_ray import storage; print(storage.read_bytes({uri!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "b'content'\n", done.stderr


def test_an_expired_session_is_one_clear_line(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    expired = s3.server.session(seconds=1)
    if expired is None:
        pytest.skip("moto takes session tokens for ever")
    valid = s3.server.session(seconds=900)
    assert valid is not None
    uri = storage.join(s3.uri, "x")
    for name, value in valid.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    storage.write_bytes(uri, b"x")
    for name, value in expired.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    time.sleep(2)
    for act in (storage.read_bytes, storage.list_dir, lambda uri: storage.create_once(uri, b"")):
        with pytest.raises(UserError, match=r"denies access.*has expired") as caught:
            act(uri)
        assert not any(value in str(caught.value) for value in expired.values())


def test_a_folder_with_the_mark_that_the_console_leaves_is_one(s3: S3) -> None:
    bucket, _, prefix = s3.uri.removeprefix("s3://").partition("/")
    s3.server.client().put_object(Bucket=bucket, Key=f"{prefix}/dfdc/", Body=b"")
    storage.write_bytes(storage.join(s3.uri, "dfdc/a.mp4"), b"x")
    folder = storage.join(s3.uri, "dfdc")
    assert storage.stat(folder).is_dir
    assert [entry.name for entry in storage.list_dir(folder)] == ["a.mp4"]


def test_a_few_of_many(s3: S3) -> None:
    for i in range(5):
        storage.write_bytes(storage.join(s3.uri, f"{i}.mp4"), b"x")
    assert [entry.name for entry in storage.list_dir(s3.uri, most=2)] == ["0.mp4", "1.mp4"]
