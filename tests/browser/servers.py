"""JupyterLab and Voila on this machine, and what the browser tests look at in their pages."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

TOKEN = "browser-test"
SERIOUS = ("serious", "critical")


@contextmanager
def jupyterlab(folder: Path, scratch: Path, **variables: str) -> Iterator[str]:
    """The address of a JupyterLab that serves a folder."""
    port = _free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    address = f"http://127.0.0.1:{port}"
    with _running(command, f"{address}/api/status?token={TOKEN}", scratch, variables):
        yield address


@contextmanager
def voila(notebook: Path, scratch: Path, **variables: str) -> Iterator[str]:
    """The address of a Voila that shows a notebook; `?theme=dark` darkens it."""
    port = _free_port()
    command = [sys.executable, "-m", "voila", str(notebook), "--no-browser", f"--port={port}"]
    command += ["--Voila.ip=127.0.0.1", "--VoilaConfiguration.allow_theme_override=YES"]
    address = f"http://127.0.0.1:{port}"
    with _running(command, f"{address}/voila/static/favicon.ico", scratch, variables):
        yield address


@contextmanager
def _running(command: list[str], probe: str, scratch: Path, variables: dict[str, str]) -> Iterator[None]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    for variable in ("LABKIT_OUT", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        environment[variable] = str(scratch / variable.lower())
    log = scratch / "server.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)
    try:
        _wait_until_it_answers(probe, server, log)
        yield
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_until_it_answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"The server did not answer:\n{log.read_text()}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Watch:
    """What a page asked for outside this machine, and the errors it logged."""

    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def watch(page: Page, address: str) -> Watch:
    """Look on from now on."""
    found = Watch()
    inside = (address, address.replace("http", "ws"), "data:", "blob:")
    page.on("request", lambda each: None if each.url.startswith(inside) else found.outside.append(each.url))
    page.on("console", lambda each: found.errors.append(_located(each)) if each.type == "error" else None)
    page.on("pageerror", lambda each: found.errors.append(str(each)))
    return found


def _located(message: ConsoleMessage) -> str:
    return f"{message.text} ({message.location.get('url')})"


@contextmanager
def opened(where: str, page: Page, notebook: Path, scratch: Path, **variables: str) -> Iterator[Watch]:
    """A notebook that has run, in "jupyterlab" or "voila"."""
    if where == "jupyterlab":
        with jupyterlab(notebook.parent, scratch, **variables) as address:
            seen = watch(page, address)
            run_all_cells(page, address, notebook.name)
            wait_until_all_have_run(page, timeout=120_000)
            yield seen
    else:
        # Voila's own template names a font on a server elsewhere; nothing of ours may.
        page.route("**/fontawesome-free*/**", lambda route: route.fulfill(body="", content_type="text/css"))
        with voila(notebook, scratch, **variables) as address:
            seen = watch(page, address)
            page.goto(address)
            yield seen


def darken(page: Page, where: str, widgets: str) -> None:
    """Change to the dark theme; widgets: the selector of those to wait for."""
    if where == "jupyterlab":
        page.evaluate(
            "window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })"
        )
    else:
        count = page.locator(widgets).count()
        page.goto(f"{page.url}?theme=dark")
        page.locator(widgets).nth(count - 1).wait_for()
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.wait_for_function(f"getComputedStyle(document.querySelector('{widgets}')).colorScheme === 'dark'")


def accessible(page: Page, context: str | None = None, impacts: Iterable[str] = SERIOUS) -> None:
    """No finding of axe of these impacts, on the page or within what the selector `context` names."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page, context=context).response
    assert found["passes"]
    wrong = [each for each in found["violations"] if each["impact"] in impacts]
    assert not wrong, [(each["id"], [node["html"] for node in each["nodes"]][:4]) for each in wrong]


def run_all_cells(page: Page, lab: str, notebook: str) -> None:
    """Open a notebook in JupyterLab and start all of its cells."""
    page.goto(f"{lab}/lab/tree/{notebook}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status"
    page.wait_for_function(f"{kernel} === 'idle'")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")


def wait_until_all_have_run(page: Page, timeout: float) -> None:
    """Wait for every code cell of the notebook."""
    page.wait_for_function(
        """() => window.jupyterapp.shell.currentWidget.content.widgets
            .filter(cell => cell.model.type === 'code')
            .every(cell => cell.model.executionCount && cell.model.executionState !== 'running'
                && cell.promptNode?.innerText !== '[*]:')""",  # a cell out of sight has no prompt
        timeout=timeout,
    )


def code_outputs(page: Page) -> dict[str, str]:
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
