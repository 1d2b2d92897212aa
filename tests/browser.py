"""Pages in headless Chromium, by Playwright: opened, and judged by axe's rules for everybody's use."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
# No sandbox: tests run as root in containers. The others keep it from asking the network for anything of its own.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
ARGUMENTS += ["--no-first-run"]
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")  # beside the mark `browser`
WAIT_MS = 120_000
DESK: dict[str, Any] = {"viewport": {"width": 1100, "height": 900}, "color_scheme": "light"}
TELEPHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page, open. What the console says besides is a failure."""
    context = browser.new_context(**DESK | options)
    page, said = context.new_page(), []
    page.set_default_timeout(WAIT_MS)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    yield page
    assert said == []
    context.close()


def check(page: Page) -> None:
    """No rule of axe's is broken, all pictures are there, and nothing is wider than the window."""
    found = Axe().run(page).response["violations"]
    assert [f"{rule['id']}: {node['target']}" for rule in found for node in rule["nodes"]] == []
    missing = "[...document.images].filter((image) => image.src && image.complete && !image.naturalWidth).map((image) => image.alt)"
    assert page.evaluate(missing) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def check_file(path: Path) -> None:
    """A page in a file, on a desk and on a telephone, with all that can be unfolded."""
    with chromium() as browser:
        for options in (DESK, TELEPHONE):
            with opened(browser, path.as_uri(), **options) as page:
                page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
                check(page)
