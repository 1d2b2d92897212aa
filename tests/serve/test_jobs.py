"""The queue of the score page: order, limits, what is kept, and that no file outlives its work."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dfdc_ray.serve.jobs import Busy, Jobs, Limits, Look, Refused, TooLarge, safe_name


@dataclass(frozen=True)
class Made:
    """What the work of these tests makes of a file."""

    text: str
    size: int = 10


class Work:
    """Holds each video until `go` is set; a file says what shall become of it."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[str] = []

    def __call__(self, path: Path, name: str, progress: Callable[[str, float | None], None]) -> Made:
        self.seen.append(name)
        progress("read", 0.5)
        text = path.read_text()
        while not self.go.wait(0.01):
            progress("read", 0.5)
        if text == "bad":
            raise Refused("it is bad")
        if text == "broken":
            raise RuntimeError(f"no luck with {path}")
        return Made(text)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def make(tmp_path: Path, work: Work) -> Iterator[Callable[..., Jobs[Made]]]:
    """Make a queue over tmp_path, closed at the end."""
    made: list[Jobs[Made]] = []

    def build(**limits: Any) -> Jobs[Made]:
        made.append(Jobs(tmp_path, work, Limits(**{"max_bytes": 100} | limits)))
        return made[-1]

    yield build
    work.go.set()
    for jobs in made:
        jobs.close()


def send(jobs: Jobs[Made], text: str = "fine", name: str = "a.mp4") -> str:
    with jobs.receive() as upload:
        upload.write(text.encode())
        return upload.finish(name)


def wait_for(jobs: Jobs[Made], job_id: str, *states: str) -> Look[Made]:
    end = time.monotonic() + 20
    while (found := jobs.look(job_id)) is None or found.state not in states:
        assert time.monotonic() < end, found
        time.sleep(0.005)
    return found


def test_one_after_the_other_each_with_its_place(make: Callable[..., Jobs[Made]], work: Work, tmp_path: Path) -> None:
    jobs = make()
    ids = [send(jobs, text, name) for text, name in (("one", "1"), ("two", "2"), ("three", "3"))]
    first = wait_for(jobs, ids[0], "working")
    assert (first.stage, first.share) == ("read", 0.5)
    assert [jobs.look(i).position for i in ids] == [None, 1, 2]
    assert len(list(tmp_path.iterdir())) == 3
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    work.go.set()
    assert [wait_for(jobs, i, "done").result for i in ids] == [Made("one"), Made("two"), Made("three")]
    assert work.seen == ["1", "2", "3"]
    assert list(tmp_path.iterdir()) == []
    assert len(set(ids)) == 3
    assert min(map(len, ids)) >= 22  # 128 bits
    assert 3590 < jobs.look(ids[0]).expires_s <= 3600


@pytest.mark.parametrize("text", ["bad", "broken"])
def test_a_failure_harms_nobody_else(
    make: Callable[..., Jobs[Made]], work: Work, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = make()
    work.go.set()
    failed = wait_for(jobs, send(jobs, text), "failed")
    assert failed.result is None
    assert (failed.message == "it is bad") == (text == "bad")
    assert wait_for(jobs, send(jobs), "done").result == Made("fine")
    said = str(failed.message) + caplog.text
    assert str(tmp_path) not in said
    assert "Traceback" not in said
    assert ("RuntimeError at test_jobs.py:" in caplog.text) == (text == "broken")
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_does_not_end_leaves_nothing(make: Callable[..., Jobs[Made]], tmp_path: Path) -> None:
    jobs = make(waiting=1)
    for trouble, piece in ((TooLarge, b"x" * 101), (ValueError, b"x")):
        with pytest.raises(trouble), jobs.receive() as upload:  # noqa: PT012
            upload.write(piece)
            raise ValueError
        assert list(tmp_path.iterdir()) == []
    send(jobs)  # its place is free again


def test_a_full_queue_takes_no_more(make: Callable[..., Jobs[Made]], work: Work) -> None:
    jobs = make(waiting=2)
    working = send(jobs)
    wait_for(jobs, working, "working")
    send(jobs)
    with jobs.receive(), pytest.raises(Busy):  # one that is being received counts
        jobs.receive()
    send(jobs)
    with pytest.raises(Busy):
        jobs.receive()
    work.go.set()
    wait_for(jobs, working, "done")


def test_deleting_forgets_whatever_the_state(make: Callable[..., Jobs[Made]], work: Work, tmp_path: Path) -> None:
    jobs = make()
    working, waiting, last = send(jobs), send(jobs, name="waiting"), send(jobs)
    wait_for(jobs, working, "working")
    assert jobs.delete(waiting)
    assert jobs.delete(working)
    assert (jobs.look(working), jobs.look(waiting)) == (None, None)
    assert not jobs.delete(working)
    wait_for(jobs, last, "working")  # the one at work was given up, for the go was not given
    assert "waiting" not in work.seen
    work.go.set()
    wait_for(jobs, last, "done")
    assert jobs.delete(last)
    assert jobs.look(last) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limits", [{"keep": 2}, {"keep_bytes": 20}])
def test_only_the_newest_results_are_kept(make: Callable[..., Jobs[Made]], work: Work, limits: dict[str, int]) -> None:
    jobs = make(**limits)
    work.go.set()
    ids = [send(jobs) for _ in range(4)]
    wait_for(jobs, ids[-1], "done")
    assert [jobs.look(i) is not None for i in ids] == [False, False, True, True]


def test_failures_push_no_result_out(make: Callable[..., Jobs[Made]], work: Work) -> None:
    jobs = make(keep=2)
    work.go.set()
    good = [send(jobs), send(jobs)]
    bad = [send(jobs, "bad") for _ in range(4)]
    wait_for(jobs, bad[-1], "failed")
    assert [jobs.look(i) is not None for i in (*good, *bad)] == [True, True, False, False, True, True]


def test_results_are_kept_for_a_while(make: Callable[..., Jobs[Made]], work: Work) -> None:
    jobs = make(keep_s=0.3)
    work.go.set()
    job_id = send(jobs)
    wait_for(jobs, job_id, "done")
    time.sleep(0.35)
    assert jobs.look(job_id) is None


def test_closing_deletes_everything_and_so_does_a_new_life(make: Callable[..., Jobs[Made]], work: Work, tmp_path: Path) -> None:
    jobs = make()
    ids = [send(jobs), send(jobs)]
    wait_for(jobs, ids[0], "working")
    late = jobs.receive()
    with late:
        late.write(b"x")
        jobs.close()
        late.finish("late")
    assert not jobs.alive
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Busy):
        jobs.receive()
    (tmp_path / "left over").write_text("of a server that was killed")
    make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/a.mp4", "a.mp4"),
        ("C:\\videos\\a.mp4", "a.mp4"),
        ("", "video"),
        ("/", "video"),
        ("a\x1b[31m\n.mp4", "a\\x1b[31m\\n.mp4"),
        ("\u202egpj.mp4", "\\u202egpj.mp4"),
        ("at\u20283\u2066\ud800.mp4", "at\\u20283\\u2066\\ud800.mp4"),
        ("Recording at 3.45\u202fPM\xa01.mov", "Recording at 3.45 PM 1.mov"),
        ("\u3000it's 👩\u200d🔬.mp4", "it's 👩\u200d🔬.mp4"),
        ("<b>Ä 1.mp4", "<b>Ä 1.mp4"),
        ("x" * 300 + ".mp4", "x" * 111 + "…" + "xxxx.mp4"),
    ],
)
def test_names_are_fit_to_be_shown(name: str, shown: str) -> None:
    assert safe_name(name) == shown
