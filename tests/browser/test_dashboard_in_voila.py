"""The dashboard's page: list, comparison, a live run, trainings that outlive it, playground and explorer."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from dashboard_process import TOKEN, Running, dashboard
from dashboard_runs import HOSTILE_SHOWN, SCRIPT, folder_of_runs, write_corpus
from servers import SERIOUS, Watch, accessible, watch

from labkit.training import Run
from labstudio.dashboard.trainings import Training, trainings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
playwright = pytest.importorskip("playwright.sync_api")


@dataclass
class Shown:
    """A page of a dashboard on a folder with some runs."""

    page: Page
    seen: Watch
    runs: Path
    server: Running
    corpus: Path

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def row(self, run: str) -> Locator:
        return self.page.locator(".ld-runs tbody tr").filter(
            has=self.page.get_by_role("button", name=run, exact=True)
        )

    def start(self, name: str, steps: int, corpus: str | None = None) -> None:
        """Fill in the form and start a training."""
        self.tab("Start a training")
        panel = self.page.get_by_role("tabpanel", name="Start a training")
        panel.get_by_label("Text").fill(corpus or str(self.corpus))
        panel.get_by_label("Steps").fill(str(steps))
        panel.get_by_label("Name").fill(name)
        panel.get_by_role("button", name="Start", exact=True).click()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is not named runs, with a blank in its name."""
    scratch = tmp_path_factory.mktemp("elsewhere")
    root = folder_of_runs(scratch / "my runs", write_corpus(scratch / "text.txt"))
    yield root
    for job in trainings(root):  # what a test that failed has left
        if job.alive:
            psutil.Process(job.pid).kill()


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with dashboard(runs, tmp_path_factory.mktemp("scratch")) as running:
        yield running


@pytest.fixture(scope="module")
def shown(
    browser: Browser, server: Running, runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shown]:
    corpus = tmp_path_factory.mktemp("texts") / "-- a text; with 'signs' & more.txt"
    write_corpus(corpus)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    playwright.expect.set_options(timeout=60_000)
    seen = watch(page, server.address)
    page.goto(server.page)
    page.locator(".ld-runs tbody tr").first.wait_for()
    yield Shown(page, seen, runs, server, corpus)
    context.close()
    playwright.expect.set_options(timeout=5_000)


def last_job(shown: Shown) -> Training:
    return trainings(shown.runs)[0]


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for something that a process on this machine does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_all_runs_are_listed_and_the_token_has_left_the_address(shown: Shown) -> None:
    assert "token" not in shown.page.url
    assert shown.page.locator(".ld-runs tbody tr").count() == 5
    playwright.expect(shown.row("large")).to_contain_text("9 / 9")
    playwright.expect(shown.row("torn")).to_contain_text("unreadable: config.json")
    assert shown.page.locator("html").get_attribute("lang") == "en"
    assert shown.page.title() == "labkit dashboard"
    assert shown.page.locator("h1").count() == 1


def test_foreign_names_are_text(shown: Shown) -> None:
    playwright.expect(shown.row(HOSTILE_SHOWN)).to_have_count(1)
    shown.row(HOSTILE_SHOWN).get_by_role("button").press("Enter")
    playwright.expect(shown.page.get_by_role("tab", name="One run")).to_be_focused()
    playwright.expect(shown.page.locator(".lr-name")).to_have_text(HOSTILE_SHOWN)
    playwright.expect(shown.page.locator(".lr-sample")).to_contain_text(HOSTILE_SHOWN)
    shown.page.locator("summary").filter(has_text="Settings").click()
    shown.tab("Try a checkpoint")
    shown.page.get_by_label("Run", exact=True).select_option(HOSTILE_SHOWN)
    assert shown.page.evaluate("window.hacked") is None
    assert not {"\u202e", "\u200b"} & set(shown.page.content())
    shown.tab("Runs")


def test_the_list_is_filtered_and_sorted_by_keyboard(shown: Shown) -> None:
    names = shown.page.locator(".ld-runs tbody th")
    box = shown.page.get_by_label("Show runs whose name or state has")
    box.fill("LARG")
    playwright.expect(names).to_have_text(["large"])
    box.fill("finished")
    playwright.expect(names).to_have_count(4)
    box.fill("")
    head = shown.page.get_by_role("columnheader", name="Parameters")
    head.get_by_role("button").press("Enter")
    playwright.expect(head).to_have_attribute("aria-sort", "ascending")
    assert names.last.inner_text() == "torn"
    head.get_by_role("button").press("Enter")
    playwright.expect(head).to_have_attribute("aria-sort", "descending")
    assert names.first.inner_text() == "large"
    assert names.last.inner_text() == "torn"


def test_runs_are_compared_by_curves_and_differing_settings(shown: Shown) -> None:
    for name in ("small", "large", HOSTILE_SHOWN):
        shown.page.get_by_label(f"Compare {name}").check()
    compared = shown.page.locator(".ld-compared")
    playwright.expect(compared.locator(".lk-legend li")).to_have_count(3)
    assert compared.locator("figure svg").count() == 2
    assert compared.locator("figure").first.locator(".lk-curve path").count() == 3
    row = compared.get_by_role("row").filter(has_text="model.d_model")
    assert row.get_by_role("cell").all_inner_texts() == ["10", "20", "10"]
    assert "small" in (compared.get_by_role("img").first.get_attribute("aria-label") or "")
    for name in ("small", "large", HOSTILE_SHOWN):
        shown.page.get_by_label(f"Compare {name}").uncheck()
    playwright.expect(compared).to_contain_text("Tick two runs")


def test_tabs_follow_the_arrow_keys(shown: Shown) -> None:
    shown.page.get_by_role("tab", name="Runs").focus()
    for key, name in (("ArrowRight", "One run"), ("End", "Try a checkpoint"), ("ArrowRight", "Runs"),
                      ("ArrowLeft", "Try a checkpoint"), ("Home", "Runs")):  # fmt: skip
        shown.page.keyboard.press(key)
        playwright.expect(shown.page.get_by_role("tab", name=name)).to_be_focused()
        playwright.expect(shown.page.get_by_role("tabpanel")).to_have_accessible_name(name)


def test_what_is_wrong_with_a_training_is_said_at_once_or_from_its_log(shown: Shown) -> None:
    panel = shown.page.get_by_role("tabpanel", name="Start a training")
    for name, steps, message in (
        ("a/b", 5, "name='a/b' must be a plain folder name"),
        ("good", 0, "max_steps=0 must"),
    ):
        shown.start(name, steps)
        playwright.expect(panel.get_by_role("alert")).to_contain_text(message)
    assert trainings(shown.runs) == []
    shown.start("help me", 5, corpus=f"/no/such/{SCRIPT}")
    playwright.expect(panel.get_by_role("alert")).to_be_empty()
    playwright.expect(panel.locator("pre")).to_contain_text("nor a path that exists")
    playwright.expect(panel.get_by_role("status")).to_contain_text("ended before it had begun a run")
    playwright.expect(panel.locator("pre")).to_contain_text(SCRIPT)
    assert shown.page.evaluate("window.hacked") is None
    assert not (shown.runs / "help me").exists()


def test_a_training_is_started_followed_stopped_and_resumed(shown: Shown) -> None:
    shown.start("live 𝒳 שלום", 3000)
    panel = shown.page.get_by_role("tabpanel", name="One run")
    playwright.expect(panel.locator(".lr-name")).to_have_text("live 𝒳 שלום")
    points = panel.locator("[data-chart=Loss] [data-points]").first
    playwright.expect(points).not_to_have_attribute("data-points", "0")
    before = int(points.get_attribute("data-points") or 0)
    curve = "document.querySelector('[data-chart=Loss] [data-points]')"
    shown.page.wait_for_function(f"before => Number({curve}.dataset.points) > before + 5", arg=before)
    job = last_job(shown)
    assert job.alive
    panel.get_by_role("button", name="Stop", exact=True).click()
    playwright.expect(panel.get_by_role("button", name="Resume")).to_be_visible()
    until(lambda: not job.alive)
    run = Run.open("live 𝒳 שלום", shown.runs)
    stopped = run.checkpoints()[-1].step
    assert 0 < stopped < 3000
    playwright.expect(panel.get_by_role("row").filter(has_text=f"step-{stopped:08d}")).to_be_visible()
    playwright.expect(panel.get_by_label("Log")).to_contain_text("stopped at step")
    panel.get_by_role("button", name="Resume").click()
    until(lambda: last_job(shown) != job and last_job(shown).alive)
    until(lambda: run.metrics("step")["step"].max() > stopped)
    assert "going on from step" in last_job(shown).last_lines()
    playwright.expect(panel.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    panel.get_by_role("button", name="Stop", exact=True).click()
    until(lambda: not last_job(shown).alive)


def test_playground_and_explorer_open_on_any_checkpoint(shown: Shown) -> None:
    shown.tab("Try a checkpoint")
    panel = shown.page.get_by_role("tabpanel", name="Try a checkpoint")
    panel.get_by_label("Run", exact=True).select_option("large")
    panel.get_by_label("Checkpoint", exact=True).select_option("step-00000009")
    panel.get_by_role("button", name="Open", exact=True).click()
    playwright.expect(panel.get_by_text("Open: large, step 9")).to_be_visible()
    playwright.expect(panel.locator(".labkit-playground").get_by_role("option").nth(5)).to_be_attached()
    playwright.expect(panel.locator(".labkit-attention")).to_contain_text("ayer")
    shown.tab("Runs")
    shown.row("small").get_by_role("button").click()
    shown.page.get_by_role("button", name="Try step-00000006").click()
    playwright.expect(panel.get_by_text("Open: small, step 6")).to_be_visible()
    playwright.expect(panel.locator(".labkit-playground")).to_have_count(1)


def test_a_damaged_checkpoint_is_explained(shown: Shown) -> None:
    shown.tab("Try a checkpoint")
    panel = shown.page.get_by_role("tabpanel", name="Try a checkpoint")
    panel.get_by_label("Run", exact=True).select_option("bitten")
    panel.get_by_role("button", name="Open", exact=True).click()
    playwright.expect(panel.get_by_role("alert").first).to_contain_text(
        "model.safetensors is not what was written"
    )
    playwright.expect(panel.locator(".labkit-playground")).to_have_count(0)


def test_nothing_stands_in_the_way_of_anybody_light_or_dark(shown: Shown, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    for scheme in ("light", "dark"):
        if scheme == "dark":
            shown.page.emulate_media(color_scheme="dark")
            shown.page.goto(shown.server.address)
            shown.page.locator(".ld-runs tbody tr").first.wait_for()
            assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 17, 17)"
        for name in ("small", "large", HOSTILE_SHOWN):
            shown.page.get_by_label(f"Compare {name}").check() if scheme == "dark" else None
        for tab, file in (
            ("Runs", "runs"),
            ("One run", "run"),
            ("Start a training", "start"),
            ("Try a checkpoint", "try"),
        ):
            if tab == "One run":
                shown.row("small").get_by_role("button").click()
                shown.page.locator(".lr-charts").wait_for()
            shown.tab(tab)
            if tab == "Try a checkpoint":
                shown.page.get_by_label("Run", exact=True).select_option("small")
                shown.page.get_by_role("button", name="Open", exact=True).click()
                shown.page.locator(".labkit-attention").wait_for()
            accessible(shown.page, impacts=("minor", "moderate", *SERIOUS))
            shown.page.screenshot(path=folder / f"dashboard-{file}-{scheme}.png", full_page=True)
        shown.tab("Runs")
    shown.page.goto(f"{shown.server.address}/?theme=light")
    shown.page.locator(".ld-runs tbody tr").first.wait_for()
    assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_it_fits_a_narrow_window(shown: Shown) -> None:
    shown.page.set_viewport_size({"width": 500, "height": 800})
    for tab in ("Runs", "One run", "Start a training", "Try a checkpoint"):
        shown.tab(tab)
        assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
    shown.page.set_viewport_size({"width": 1200, "height": 900})


def test_all_that_while_nothing_left_the_machine_and_no_error_was_logged(shown: Shown) -> None:
    assert (shown.seen.outside, shown.seen.errors) == ([], [])


def test_a_page_can_send_nothing_elsewhere(shown: Shown) -> None:
    refused = """async () => {
        const blocked = [];
        document.addEventListener('securitypolicyviolation', event => blocked.push(event.effectiveDirective));
        const failed = await fetch('http://localhost:9/').then(() => false, () => true);
        new Image().src = 'http://localhost:9/x.png';
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
        while (blocked.length < 3) await new Promise(resolve => setTimeout(resolve, 50));
        return [failed, blocked.sort().join()];
    }"""
    assert shown.page.evaluate(refused) == [True, "connect-src,img-src,script-src-elem"]
    assert shown.page.evaluate("window.hacked") is None


def test_whoever_has_the_token_cannot_run_code_of_their_own(shown: Shown, tmp_path: Path) -> None:
    """The kernel takes messages between widgets, and no others."""
    websocket = pytest.importorskip("websocket")
    config = json.loads(shown.page.locator("#jupyter-config-data").text_content() or "")
    address = shown.server.address.replace("http", "ws")
    channel = f"{address}/api/kernels/{config['kernelId']}/channels?token={TOKEN}"
    connection = websocket.create_connection(channel, timeout=60)

    def send(kind: str, content: dict[str, object]) -> None:
        header = {
            "msg_id": kind,
            "msg_type": kind,
            "session": "s",
            "username": "u",
            "version": "5.3",
            "date": "",
        }
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        connection.send(json.dumps(message | {"channel": "shell", "buffers": []}))

    made = tmp_path / "made"
    code = f"open({str(made)!r}, 'w').close()"
    send("execute_request", {"code": code, "silent": False, "user_expressions": {}, "allow_stdin": False})
    send("inspect_request", {"code": "open", "cursor_pos": 1})
    send("kernel_info_request", {})
    replies = []
    while "kernel_info_reply" not in replies:
        replies.append(json.loads(connection.recv())["header"]["msg_type"])
    connection.close()
    assert not {"execute_reply", "execute_input", "inspect_reply"} & set(replies)
    assert not made.exists()


def kernels(server: Running) -> list[psutil.Process]:
    found = []
    for each in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended while we look
            if "ipykernel_launcher" in " ".join(each.cmdline()):
                found.append(each)
    return found


def test_a_closed_page_ends_its_kernel_and_no_training(shown: Shown) -> None:
    shown.start("stays", 4000)
    until(lambda: last_job(shown).run_id == "stays")
    job = last_job(shown)
    shown.page.goto("about:blank")
    until(lambda: not kernels(shown.server))
    step = Run(shown.runs / "stays").metrics("step")["step"].max()
    until(lambda: Run(shown.runs / "stays").metrics("step")["step"].max() > step + 5)
    assert job.alive
    shown.page.goto(shown.server.address)
    shown.row("stays").get_by_role("button").click()
    stop = shown.page.get_by_role("button", name="Stop", exact=True).first
    playwright.expect(stop).to_be_visible()
    stop.click()
    until(lambda: not job.alive)


def test_a_training_goes_on_to_its_end_when_server_and_kernel_are_killed(shown: Shown) -> None:
    shown.page.goto(shown.server.address)
    shown.start("survivor", 400)
    until(lambda: last_job(shown).run_id == "survivor")
    job = last_job(shown)
    for process in (*kernels(shown.server), psutil.Process(shown.server.process.pid)):
        process.send_signal(signal.SIGKILL)
    shown.server.process.wait(timeout=60)
    assert job.alive
    until(lambda: not job.alive, 600)
    run = Run.open("survivor", shown.runs)
    assert run.metrics("step")["step"].max() == 400
    assert "run survivor finished" in job.last_lines()
    assert run.load()[0].config.n_layers == 4
