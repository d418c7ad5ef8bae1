"""Lesson 03 in a real browser: JupyterLab runs all of it, the sliders move, and the text follows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import code_outputs, jupyterlab, run_all_cells, wait_until_all_have_run, watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
playwright = pytest.importorskip("playwright.sync_api")

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a copy of the lessons, in the smoke profile."""
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with jupyterlab(tmp_path / "notebooks", tmp_path, LABKIT_PROFILE="smoke") as address:
        yield address


def test_lesson_03_runs_and_its_sliders_change_the_text(lab: str, browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(60_000)
    seen = watch(page, lab)
    run_all_cells(page, lab, "03_mini_gpt.ipynb")
    wait_until_all_have_run(page, timeout=600_000)
    outputs = code_outputs(page)
    assert outputs["setup"] == "profile: smoke\n"
    assert "[x] Journal entry in `learning_journal.md`" in outputs["checklist-code"]

    playground = page.locator(".labkit-playground").last
    playground.scroll_into_view_if_needed()
    text = playground.locator(".lp-text").first
    playwright.expect(text).to_contain_text("ROMEO.")
    before = text.inner_text()

    playground.get_by_role("slider", name="Temperature").first.focus()
    page.keyboard.press("ArrowRight")
    playwright.expect(text).not_to_have_text(before)
    box = playground.get_by_role("spinbutton", name="Temperature, as a number")
    assert float(box.first.input_value()) == pytest.approx(0.85)

    status = playground.get_by_role("status")
    playwright.expect(status).to_contain_text("Ready")
    warmer = text.inner_text()
    box = playground.get_by_role("spinbutton", name="Top-k, as a number").first
    box.fill("1")  # always the likeliest
    box.press("Enter")
    playwright.expect(text).not_to_have_text(warmer)
    assert playground.get_by_role("slider", name="Top-k").first.get_attribute("aria-valuetext") == "1"
    page.screenshot(path=os.environ.get("LABKIT_SCREENSHOT", str(tmp_path / "lesson_03.png")))
    assert seen.outside == []
    page.close()
