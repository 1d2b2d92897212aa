"""The score page in a real browser: from the file to the verdict and its evidence, by mouse and keyboard, light, dark, on a telephone."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import NEEDS_CHROMIUM, TELEPHONE, WAIT_MS, check, chromium, opened
from playwright.sync_api import Browser, Page, expect
from serving import served

from dfdc_ray.config import PreprocessConfig
from dfdc_ray.evaluate import calibration
from dfdc_ray.evaluate.calibration import Calibration
from dfdc_ray.models import create_model
from dfdc_ray.preprocess.settings import settings_of
from dfdc_ray.serve.app import create_app
from dfdc_ray.serve.examine import Examiner, card
from dfdc_ray.serve.jobs import Jobs, Limits, Upload
from dfdc_ray.serve.score import load_predictor
from dfdc_ray.train import checkpoint, transforms

pytestmark = [pytest.mark.browser, NEEDS_CHROMIUM]


@contextmanager
def serving(best: Path, uploads: Path, *, max_bytes: int = 1_000_000) -> Iterator[str]:
    """The page with a model."""
    scorer, _, settings = load_predictor(str(best), frames=8)
    examiner = Examiner(scorer, settings, timeout_s=60, memory_bytes=4 << 30, longest_s=60)
    jobs = Jobs(uploads, examiner, Limits(max_bytes=max_bytes))
    about = card(scorer, settings) | {"max_seconds": 60.0}
    with served(create_app(jobs, card=about, close=examiner.close)) as url:
        yield url


@pytest.fixture(scope="module")
def url(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With a model of faces, of random weights."""
    with serving(best, tmp_path_factory.mktemp("uploads")) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, url, **getattr(request, "param", {})) as page:
        yield page


def scored(page: Page, *files: Path) -> None:
    page.set_input_files("#file", list(files))
    expect(page.locator(".found:visible, .failed")).to_have_count(len(files), timeout=WAIT_MS)


def test_from_a_file_to_the_evidence(page: Page, folder: Path) -> None:
    expect(page.locator("#model")).to_contain_text("resnet34 on single frames of 64 x 64 pixels")
    expect(page.locator("#limits")).to_contain_text("At most 1.0 MB and 1 min each")
    scored(page, folder / "face.mp4")
    assert page.locator(".answer").inner_text().strip("?") in ("REAL", "FAKE")
    expect(page.locator(".meaning")).to_contain_text("not calibrated")
    assert page.locator("#news").inner_text().startswith("face.mp4: ")
    expect(page.locator(".faceless")).to_contain_text("No face was found in")
    page.locator(".missed button").last.click()
    page.wait_for_function("document.querySelector('video').currentTime > 0")

    page.wait_for_function("document.querySelector('video').readyState >= 2")  # of the browser's own copy
    assert page.locator("video").evaluate("video => video.src").startswith("blob:")
    page.locator(".point").nth(-1).click()
    page.wait_for_function("document.querySelector('video').currentTime > 1.5")
    last = page.locator(".which").inner_text()
    assert page.locator(".point[tabindex='0']").get_attribute("aria-pressed") == "true"
    assert page.locator(".point[aria-pressed=true]").get_attribute("aria-label") == last.replace("Face", "face")
    for picture in (".crop", ".heat"):
        page.wait_for_function("name => document.querySelector(name).naturalWidth >= 64", arg=picture)

    page.locator(".point[aria-pressed=true]").focus()  # by keyboard: two points back
    for key in ("ArrowLeft", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    assert page.locator(".which").inner_text() != last
    assert page.locator(".point[tabindex='0']").count() == 1
    page.wait_for_function("document.querySelector('video').currentTime < 1.7")
    page.get_by_role("button", name="Next face").click()
    page.locator(".all summary:visible").click()
    page.locator(".strip button").first.click()
    expect(page.locator(".strip button").first).to_have_attribute("aria-pressed", "true")

    result = page.request.get(page.locator(".json").evaluate("link => link.href"))
    assert result.json()["videos"][0]["uri"] == "face.mp4"
    track = result.json()["faces"][0]["track_id"]  # by which the report and `predict` name it too
    assert last.startswith(f"Face {track} at ")
    assert page.locator(".timeline text").first.text_content() == f"Face {track}"
    page.get_by_role("button", name="Remove face.mp4").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#file")).to_be_focused()
    assert page.request.get(result.url).status == 404


@pytest.mark.parametrize("name", ["face.mp4", "late.mkv"])
def test_the_video_goes_to_the_very_frame_that_was_scored(page: Page, folder: Path, name: str) -> None:
    scored(page, folder / name)
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    faces = page.request.get(page.locator(".json").evaluate("link => link.href")).json()["faces"]
    choose = """n => new Promise((done) => {
        document.querySelector("video").requestVideoFrameCallback((_, frame) => done(frame.mediaTime));
        document.querySelectorAll(".strip button")[n].click();
        setTimeout(() => done(-1), 20000); // no other frame came
    })"""
    shown = [page.evaluate(choose, face["n"]) for face in faces]
    begin = 7200 if name == "late.mkv" else 0  # Chromium's time is the file's
    assert shown == pytest.approx([begin + face["time_s"] for face in faces], abs=2e-3)  # Matroska rounds to a millisecond
    ends = page.locator(".timeline text[text-anchor=end]").last.text_content()
    assert 1.9 <= float(ends.removesuffix(" s")) <= 2.1


def test_a_real_clip(browser: Browser, best: Path, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    clip = shared / "data" / "dfdc_clips" / "lynaeydofd.mp4"  # 10 s in 1080p
    with serving(best, tmp_path / "uploads", max_bytes=10_000_000) as url, opened(browser, url) as page:
        scored(page, clip)
        assert page.locator(".answer").inner_text().strip("?") in ("REAL", "FAKE")
        assert page.locator(".point").count() >= 8
        page.locator(".point").last.click()
        page.wait_for_function("document.querySelector('video').currentTime > 5")
        page.wait_for_function("document.querySelector('.heat').naturalWidth >= 64")
        check(page)


def test_a_video_that_is_dropped(page: Page, folder: Path) -> None:
    dropped = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], "dropped.mp4", {type: "video/mp4"}));
            return transfer;
        }""",
        base64.b64encode((folder / "face.mp4").read_bytes()).decode(),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.locator(".found:visible")).to_have_count(1, timeout=WAIT_MS)
    assert page.locator(".name").inner_text() == "dropped.mp4"


def test_who_clicks_before_a_frame_is_shown_gets_there_too(page: Page, folder: Path) -> None:
    page.add_init_script("HTMLVideoElement.prototype.requestVideoFrameCallback = (tell) => { window.shown = tell; }")
    page.reload()
    scored(page, folder / "face.mp4")
    faces = page.request.get(page.locator(".json").evaluate("link => link.href")).json()["faces"]
    page.evaluate("document.querySelectorAll('.strip button')[1].click()")
    page.evaluate("window.shown(0, {mediaTime: document.querySelector('video').currentTime})")  # of the frame that was asked for
    page.evaluate("document.querySelectorAll('.strip button')[2].click()")
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(faces[2]["time_s"], abs=2e-3)


def test_removing_what_was_sent_and_not_answered_yet(page: Page, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page does not know its id then, and must not leave it on the server."""
    removed, finish = threading.Event(), Upload.finish

    def slowly(upload: Upload[Any], name: str) -> str:
        assert removed.wait(60)
        return finish(upload, name)

    monkeypatch.setattr(Upload, "finish", slowly)
    page.set_input_files("#file", folder / "face.mp4")
    expect(page.locator(".state")).to_have_text("Sent.")
    page.get_by_role("button", name="Remove face.mp4").click()
    with page.expect_response(lambda response: response.request.method == "DELETE") as deleted:
        removed.set()
    assert deleted.value.status == 204


def test_several_and_bad_ones(page: Page, folder: Path, tmp_path: Path) -> None:
    large, nothing = tmp_path / "large.mp4", tmp_path / "nothing.mp4"
    large.write_bytes(b"x" * 2_000_000)
    nothing.write_bytes(b"")
    scored(page, folder / "face.mp4", folder / "text.mp4", folder / "empty.mp4", large, nothing)
    said = {item.locator(".name").inner_text(): item.inner_text() for item in page.locator(".card").all()}
    assert "Not a readable video" in said["text.mp4"]
    assert "Try an MP4" in said["text.mp4"]
    assert "at most 1.0 MB are taken" in said["large.mp4"]
    assert "The file is empty" in said["nothing.mp4"]
    assert "no face in 8 sampled frames" in said["empty.mp4"]
    assert "No verdict" in said["empty.mp4"]
    assert page.locator(".failed").count() == 3
    for words in ("threshold", "Arrow keys", "Scores over time", "before calibration", "A score is evidence"):  # there is none
        assert words not in said["empty.mp4"]
    assert "A low one does not say that a video is real" in said["face.mp4"]


@pytest.mark.parametrize("page", [{}, TELEPHONE], indirect=True, ids=["desk", "dark telephone"])
def test_everybody_can_use_it(page: Page, folder: Path) -> None:
    check(page)
    scored(page, folder / "face.mp4", folder / "text.mp4")
    page.locator(".all summary:visible").click()
    page.wait_for_timeout(500)  # until the cards have faded in
    check(page)
    for other in (page.locator(".report").last.evaluate("link => link.href"), page.url + "docs"):
        page.goto(other)
        check(page)


def _checkpoint(folder: Path, model: str, side: int, **sampled: Any) -> Path:
    """Of random weights, trained on faces (or frames) that were made so."""
    torch.manual_seed(0)
    faces = asdict(settings_of(PreprocessConfig(corpus=("unused",), out="unused", **sampled)))
    config = {"model": model, "transform": transforms.recipe(side, model), "faces_config": faces}
    checkpoint.save(str(folder / "best"), weights=create_model(model).state_dict(), config=config, state=None)
    return folder / "best"


def test_a_model_of_whole_frames_speaks_of_frames(browser: Browser, folder: Path, tmp_path: Path) -> None:
    best = _checkpoint(tmp_path, "resnet34", 64, crop="frame", frames=8)
    (tmp_path / "uploads").mkdir()
    with serving(best, tmp_path / "uploads") as url, opened(browser, url) as page:
        expect(page.locator("#model")).to_contain_text("whole frames, 8 of a video")
        scored(page, folder / "empty.mp4")
        expect(page.locator(".which")).to_contain_text("Frame at")
        for words in (page.locator(".found").inner_text(), page.locator("header").inner_text()):
            assert "face" not in words.lower()
        page.goto(page.locator(".report").evaluate("link => link.href"))
        assert "face" not in page.locator("body").inner_text().lower().replace("faces of training", "")


def test_a_calibrated_model_speaks_of_probabilities(browser: Browser, best: Path, folder: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(str(best))
    checkpoint.save(str(tmp_path / "best"), weights=loaded.weights, config=loaded.config, state=None)
    weights = checkpoint.load(str(tmp_path / "best")).config["files"]["model.safetensors"]
    fitted = Calibration(rule="mean", a=2.0, b=1.0, reals=11, fakes=22, frames=8, unit="frames", data_hash="d", weights=weights)
    calibration.save(str(tmp_path / "best"), fitted)
    (tmp_path / "uploads").mkdir()
    with serving(tmp_path / "best", tmp_path / "uploads") as url, opened(browser, url) as page:
        expect(page.locator("#model")).to_contain_text("calibrated: Platt's scaling")
        scored(page, folder / "face.mp4", folder / "empty.mp4")
        card = page.locator(".card", has_text="face.mp4")
        result = page.request.get(card.locator(".json").evaluate("link => link.href")).json()
        expect(card.locator(".words")).to_have_text(f"probability of a fake {result['shown']}: {result['sureness']}")
        expect(card.locator(".meaning")).to_contain_text(f"{result['videos'][0]['score']:.1%} are fake")
        expect(card.locator(".limits")).to_be_visible()
        expect(card.locator(".legend")).to_contain_text("above the threshold (0.378)")  # 1 / (1 + exp(b / a))
        expect(card.locator(".legend")).to_contain_text("before calibration")
        assert "before calibration" not in page.locator(".card", has_text="empty.mp4").inner_text()
        page.wait_for_timeout(500)  # until the cards have faded in
        check(page)
        page.goto(card.locator(".report").evaluate("link => link.href"))
        check(page)
        assert "before calibration" in page.locator("body").inner_text()


def test_a_model_of_clips_speaks_of_clips(browser: Browser, folder: Path, tmp_path: Path) -> None:
    best = _checkpoint(tmp_path, "chroma", 32, sampling="clips", frames=4, clips=8)
    (tmp_path / "uploads").mkdir()
    with serving(best, tmp_path / "uploads") as url, opened(browser, url) as page:
        scored(page, folder / "face.mp4")
        expect(page.locator(".crop + figcaption")).to_have_text("The first frame of the clip, as the model got it")
        expect(page.locator(".faceless")).to_contain_text("sampled clips")
        page.locator(".own summary").click()
        page.wait_for_function("document.querySelector('.maps').naturalWidth > 100")
        check(page)


def test_what_was_not_scored_goes_with_the_page_that_is_closed(browser: Browser, url: str, folder: Path) -> None:
    with opened(browser, url) as page:
        page.set_input_files("#file", [folder / "face.mp4", folder / "face.mp4", folder / "face.mp4"])
        expect(page.locator(".state").first).to_contain_text("Waits:")  # the last that was sent
        last = page.evaluate("[...cards][2].url")
        assert page.request.get(f"{url}/{last}").status == 200
        page.reload()
        for _ in range(100):
            if page.request.get(f"{url}/{last}").status == 404:
                return
            page.wait_for_timeout(100)
    pytest.fail("it is still there")


def test_a_result_that_is_gone_is_said_to_be(page: Page, folder: Path) -> None:
    scored(page, folder / "face.mp4")
    page.locator(".crop").dispatch_event("error")  # as when the picture is not there
    expect(page.locator(".expires")).to_have_text("The server has forgotten this video: send it again.")
