"""Lesson 03 in a real browser: JupyterLab runs all of it, the sliders move, and the text follows."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
playwright = pytest.importorskip("playwright.sync_api")

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
TOKEN = "browser-test"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a copy of the lessons, in the smoke profile."""
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--ServerApp.root_dir={tmp_path / 'notebooks'}", f"--IdentityProvider.token={TOKEN}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    environment = os.environ | {"LABKIT_PROFILE": "smoke"}
    for variable in ("LABKIT_OUT", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        environment[variable] = str(tmp_path / variable.lower())
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(f"{address}/api/status?token={TOKEN}", server, tmp_path / "server.log")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


def wait_until_it_answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not answer:\n{log.read_text()}")


@pytest.fixture
def page(chromium: str) -> Iterator[playwright.Page]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def run_all_cells(page: playwright.Page, lab: str, notebook: str) -> None:
    page.goto(f"{lab}/lab/tree/{notebook}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status"
    page.wait_for_function(f"{kernel} === 'idle'")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")


def code_outputs(page: playwright.Page) -> dict[str, str]:
    """Everything that each code cell printed or raised, by its id, as the notebook's model has it."""
    script = """() => {
        const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells;
        return JSON.stringify(cells.filter(cell => cell.cell_type === 'code'));
    }"""
    joined = {}
    for cell in json.loads(page.evaluate(script)):
        parts = [output.get("text", output.get("evalue", "")) for output in cell["outputs"]]
        joined[cell["id"]] = "".join("".join(part) for part in parts)
    return joined


def test_lesson_03_runs_and_its_sliders_change_the_text(
    lab: str, page: playwright.Page, tmp_path: Path
) -> None:
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if is_outside(request.url, lab) else None)
    run_all_cells(page, lab, "03_mini_gpt.ipynb")
    page.wait_for_function(
        """() => window.jupyterapp.shell.currentWidget.content.widgets
            .filter(cell => cell.model.type === 'code')
            .every(cell => cell.model.executionCount && cell.model.executionState !== 'running'
                && cell.promptNode?.innerText !== '[*]:')""",  # a cell out of sight has no prompt
        timeout=600_000,
    )
    outputs = code_outputs(page)
    assert outputs["setup"] == "profile: smoke\n"
    assert "journal entry:      True" in outputs["checklist-code"]

    playground = page.locator(".jp-OutputArea-output .widget-vbox:has(.widget-slider)").last
    playground.scroll_into_view_if_needed()
    text = playground.locator("pre")
    playwright.expect(text).to_contain_text("ROMEO.")
    before = text.inner_text()

    handles = playground.locator(".widget-slider .noUi-handle")
    handles.nth(0).focus()
    page.keyboard.press("ArrowRight")
    playwright.expect(text).not_to_have_text(before)
    boxes = playground.locator("input[type=number]")
    assert float(boxes.nth(0).input_value()) == pytest.approx(0.9)

    warmer = text.inner_text()
    boxes.nth(1).fill("1")  # top-k 1: always the likeliest
    boxes.nth(1).press("Enter")
    playwright.expect(text).not_to_have_text(warmer)
    assert handles.nth(1).get_attribute("aria-valuenow") == "1.0"
    page.screenshot(path=os.environ.get("LABKIT_SCREENSHOT", str(tmp_path / "lesson_03.png")))
    assert outside == []


def is_outside(url: str, lab: str) -> bool:
    return not url.startswith((lab, lab.replace("http", "ws"), "data:", "blob:"))
