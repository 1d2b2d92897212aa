"""The site can be built without a warning, and its pages' links lead somewhere, on GitHub too."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from dfdc_ray.config import ServeConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run([*command, "docs", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api.html").read_text()
    assert 'id="dfdc_ray.train.loop.train_loop"' in api
    assert 'id="dfdc_ray.evaluate.heat.heat_maps"' in api


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        if page.stem != "index":
            assert f"]({page.name})" in index
            assert re.search(rf"^{page.stem}$", index, re.M)


def test_the_limits_of_the_score_page_are_those_of_the_command() -> None:
    listed = re.findall(r"^\| `--([\w-]+)` \| (\d+) \|", (ROOT / "docs" / "serve.md").read_text(), re.M)
    defaults = {field.name.replace("_", "-"): field.default for field in fields(ServeConfig)}
    assert {name: float(value) for name, value in listed} == {name: defaults[name] for name, _ in listed}
    assert set(defaults) - dict(listed).keys() == {"checkpoint", "host", "name", "port", "frames"}
