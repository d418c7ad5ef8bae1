"""The pages of the lessons, exported and in JupyterLab: axe finds nothing serious in what is ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from nbconvert import HTMLExporter
from servers import SERIOUS, TOKEN, jupyterlab

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
AT_200_PERCENT = {"width": 640, "height": 512}  # 1280 x 1024, in CSS pixels

# Not ours: nbconvert's template prints prompts in grey and colours code in tones that are too light,
NBCONVERTS = [".jp-InputPrompt", ".jp-OutputPrompt", ".highlight"]
# and underlines no links.
NBCONVERTS_RULES = ["link-in-text-block"]
# JupyterLab leaves out the alternative text of images, which is why `show` also prints it (checked below).
JUPYTERLABS_RULES = ["image-alt"]
# What we wrote, in JupyterLab: the rest is its own.
OURS = [".jp-RenderedMarkdown", ".jp-Notebook .jp-OutputArea-output"]

# What ends right of its page or of a box that shows no scroll bar, so that nobody can read it.
CUT_OFF = """selector => [...document.querySelectorAll(selector)].filter(each => {
    for (let box = each.parentElement; box; box = box.parentElement) {
        const clips = getComputedStyle(box).overflowX;
        if (clips === 'auto' || clips === 'scroll') return false;
        if (clips === 'hidden' && each.getBoundingClientRect().right > box.getBoundingClientRect().right + 1)
            return true;
    }
    return each.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(each => `${each.tagName} ${each.className} ${each.textContent.slice(0, 60)}`)"""

# A Markdown cell with something wider scrolls, which no key does; other fonts may make a formula wider.
TOO_WIDE = """() => [...document.querySelectorAll('.jp-MarkdownOutput')].flatMap(cell => {
    const style = getComputedStyle(cell);
    const room = cell.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const wider = (selector, limit) => [...cell.querySelectorAll(selector)]
        .filter(each => each.getBoundingClientRect().width > limit)
        .map(each => [each.getBoundingClientRect().width, room, each.parentElement.textContent.slice(0, 60)]);
    return [...wider('mjx-container[display] mjx-math', 0.95 * room), ...wider('table', room + 1)];
})"""


def findings(page: Page, context: dict[str, list[str]], without: list[str]) -> list[tuple[str, list[str]]]:
    selectors = {kind: [[each] for each in chosen] for kind, chosen in context.items()}
    options = {"rules": {rule: {"enabled": False} for rule in without}, "resultTypes": ["violations"]}
    found: dict[str, Any] = axe.Axe().run(page, context=selectors, options=options).response
    assert found["passes"]
    serious = [each for each in found["violations"] if each["impact"] in SERIOUS]
    return [(each["id"], [node["html"] for node in each["nodes"]][:4]) for each in serious]


@pytest.fixture(scope="module")
def offline(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport=AT_200_PERCENT)  # type: ignore[arg-type]
    page.route("**/*", lambda route: route.continue_() if "file:" in route.request.url else route.abort())
    yield page
    page.close()


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_exported_page_at_200_percent(lesson: Path, offline: Page, tmp_path: Path) -> None:
    page = tmp_path / f"{lesson.stem}.html"
    page.write_text(HTMLExporter(template_name="lab").from_filename(str(lesson))[0], encoding="utf-8")
    offline.goto(page.as_uri())
    assert findings(offline, {"exclude": NBCONVERTS}, NBCONVERTS_RULES) == []
    root = "document.documentElement"
    assert offline.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    # Of code the template itself cuts the ends of long lines.
    assert offline.evaluate(CUT_OFF, ".jp-RenderedMarkdown *, .jp-OutputArea-output *") == []


@pytest.fixture(scope="module")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """JupyterLab as `make lab` starts it, on a copy of the lessons; it renders cells out of sight, too."""
    scratch = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", scratch / "notebooks")
    settings = scratch / "jupyter_config_dir/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with jupyterlab(scratch / "notebooks", scratch, JUPYTER_CONFIG_PATH=str(ROOT / ".jupyter")) as address:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{address}/lab?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Launcher")
        command(page, "application:toggle-left-area")  # the list of files, which would leave little room
        yield page
        page.close()


def command(page: Page, name: str, **arguments: str) -> None:
    page.evaluate(
        "async each => { await window.jupyterapp.commands.execute(each.name, each.arguments); }",
        {"name": name, "arguments": arguments},
    )


def open_alone(page: Page, lesson: Path) -> None:
    """Open a lesson, without running it, and close the one before."""
    page.evaluate("[...window.jupyterapp.shell.widgets('main')].forEach(each => each.dispose())")
    command(page, "docmanager:open", path=lesson.name)
    page.wait_for_function(
        """() => {
            const cells = window.jupyterapp.shell.currentWidget?.content.model?.cells.length;
            return cells > 1 && cells === document.querySelectorAll('.jp-Notebook .jp-Cell').length;
        }"""
    )
    # All formulas are set, and the last of them some time ago.
    page.wait_for_function(
        """() => {
            const before = window.formulas, now = document.querySelectorAll('mjx-container').length;
            window.formulas = now;
            return now > 0 && now === before;
        }""",
        polling=1000,
    )


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_page_in_jupyterlab(lesson: Path, lab: Page) -> None:
    lab.set_viewport_size({"width": 1280, "height": 1024})
    open_alone(lab, lesson)
    for theme, light in (("JupyterLab Light", "true"), ("JupyterLab Dark", "false")):
        command(lab, "apputils:change-theme", theme=theme)
        lab.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
        assert findings(lab, {"include": OURS}, JUPYTERLABS_RULES) == []
    lab.set_viewport_size(AT_200_PERCENT)  # type: ignore[arg-type]
    ours = ", ".join(f"{each} :not(mjx-assistive-mml, mjx-assistive-mml *)" for each in OURS)
    assert lab.evaluate(CUT_OFF, ours) == []
    assert lab.evaluate(TOO_WIDE) == []
    images = lab.locator(".jp-Notebook .jp-OutputArea-output > img")
    spoken = lab.locator(".jp-OutputArea-child:has(img) + .jp-OutputArea-child", has_text="Figure: ")
    assert images.count() == spoken.count() > 0


def test_jupyterlab_asks_for_nothing_from_the_network(lab: Page) -> None:
    assert lab.get_by_text("Would you like to get notified").count() == 0
