"""LiveRun in JupyterLab: the curve moves, every button acts, other cells run, nothing is lost on the way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from servers import TOKEN, Watch, accessible, code_outputs, jupyterlab, watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=60_000)

SLOW = '''
import time
import torch
from labkit import GPT, GPTConfig, TrainConfig, Trainer
from labkit.text import CharTokenizer

torch.set_num_threads(1)
TEXT = "to be, or not to be \\u202e\\u200b<" * 40
SCRIPT = "<script>window.hacked=1</script>"

class Odd(CharTokenizer):
    def __init__(self, characters):
        super().__init__(characters)
        self.eos_id = None

    def token_bytes(self, token_id):
        return SCRIPT.encode() if token_id == len(self.characters) else super().token_bytes(token_id)

class Slow(GPT):
    """A step of it takes a while, so that it can be paused in the middle."""

    def loss(self, *arguments, **options):
        time.sleep(0.04 if self.training else 0)
        return super().loss(*arguments, **options)

def trainer():
    torch.manual_seed(0)
    tokenizer = Odd(sorted(set(TEXT)))
    ids = torch.tensor(tokenizer.encode(TEXT))
    shape = {"context_length": 9, "d_model": 12, "n_layers": 2, "n_heads": 2}
    config = TrainConfig(
        max_steps=250, batch_size=3, eval_windows=5, eval_every=20, sample_every=10, sample_tokens=40,
        checkpoint_every=50, schedule="constant", warmup_steps=0, learning_rate=1e-3, threads=1,
    )
    model = Slow(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    return Trainer(model, ids[:700], ids[700:], config, tokenizer=tokenizer, prompt="to")
'''
NAME = "live &lt;b&gt; \U0001d518"
CELLS = {
    "make": "from labstudio import LiveRun\nfrom slow import trainer",
    "live": f"live = LiveRun(trainer(), {NAME!r})\nlive",
    "other": "print('answer', 6 * 7, 'at step', live.trainer.step)",
    "wait": "print('ended:', live.wait())",
}


@dataclass
class Shown:
    """A page of JupyterLab with a LiveRun in it."""

    page: Page
    seen: Watch
    address: str

    @property
    def live(self) -> Locator:
        return self.page.locator(".labkit-run")

    def run(self, cell: str) -> None:
        """Start a cell, without waiting for its end."""
        number = list(CELLS).index(cell)
        self.page.evaluate(f"window.jupyterapp.shell.currentWidget.content.activeCellIndex = {number}")
        self.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-cell')")

    def open(self) -> None:
        self.page.goto(f"{self.address}/lab/tree/live.ipynb?token={TOKEN}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.connectionStatus"
        self.page.wait_for_function(f"{kernel} === 'connected'")

    def output(self, cell: str) -> str:
        return code_outputs(self.page)[cell]

    def button(self, name: str) -> Locator:
        return self.live.get_by_role("button", name=name, exact=True)

    def steps(self) -> int:
        found = re.match(r"step ([\d,]+) of 250", self.live.locator(".lr-steps").inner_text())
        assert found
        return int(found[1].replace(",", ""))

    def points(self) -> int:
        curve = self.live.locator("[data-chart=Loss] [data-points] >> nth=0")
        return int(curve.get_attribute("data-points") or 0)

    def number(self, name: str) -> str:
        return self.live.locator(f"[data-number={name}]").inner_text()

    def expect_state(self, state: str, timeout: float = 60_000) -> None:
        playwright.expect(self.live.locator(".lr-state")).to_have_text(state, timeout=timeout)

    def expect_more_steps_than(self, steps: int) -> None:
        self.page.wait_for_function(
            """steps => Number(document.querySelector('.labkit-run .lr-steps').innerText
                .replaceAll(',', '').split(' ')[1]) > steps""",
            arg=steps,
        )

    def stands_still(self) -> int:
        """The step, which is the same a while later."""
        steps = self.steps()
        self.page.wait_for_timeout(700)
        assert self.steps() == steps
        return steps


@pytest.fixture(scope="module")
def shown(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    scratch = tmp_path_factory.mktemp("lab")
    folder = scratch / "notebooks"
    folder.mkdir()
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in CELLS.items()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "live.ipynb")
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.set_default_timeout(60_000)
    with jupyterlab(folder, scratch, LABKIT_LIVE="") as address:
        shown = Shown(page, watch(page, address), address)
        shown.open()
        kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status"
        page.wait_for_function(f"{kernel} === 'idle'")
        shown.run("make")
        shown.run("live")
        shown.live.wait_for()
        yield shown
    page.close()


def test_the_curve_moves_while_it_trains(shown: Shown) -> None:
    shown.expect_state("training")
    shown.expect_more_steps_than(3)
    points = shown.points()
    shown.expect_more_steps_than(shown.steps() + 20)
    assert shown.points() > points > 0
    assert shown.number("tokens_per_second") != "–"
    assert shown.number("seconds_left") != "–"


def test_another_cell_runs_meanwhile(shown: Shown) -> None:
    before = shown.steps()
    shown.run("other")
    shown.page.wait_for_function("document.body.innerText.includes('answer 42 at step')")
    shown.expect_more_steps_than(before)
    at = int(shown.output("other").split()[-1])
    assert before <= at < 250
    shown.expect_state("training")


def test_pause_acts_at_once_and_a_step_is_one_step(shown: Shown) -> None:
    before = shown.steps()
    shown.button("Pause").click()
    shown.expect_state("paused")
    assert before < shown.steps() < before + 40
    paused = shown.stands_still()
    shown.button("Step").click()
    shown.expect_more_steps_than(paused)
    assert shown.stands_still() == paused + 1
    shown.button("Step").focus()
    shown.page.keyboard.press("Enter")
    shown.expect_more_steps_than(paused + 1)
    assert shown.stands_still() == paused + 2
    playwright.expect(shown.button("Step")).to_be_focused()
    shown.expect_state("paused")


def test_a_sample_can_be_asked_for_and_those_before_it_looked_at(shown: Shown) -> None:
    at = shown.steps()
    choice = shown.live.get_by_label("What it wrote at")
    shown.button("Sample now").click()
    playwright.expect(choice.locator("option").last).to_have_text(f"step {at}, asked for")
    playwright.expect(choice.locator("option:checked")).to_have_text(f"step {at}, asked for")
    latest = shown.live.locator(".lr-sample").inner_text()
    assert latest.startswith("to")
    shown.button("Earlier").press("Enter")
    playwright.expect(choice.locator("option:checked")).not_to_have_text(f"step {at}, asked for")
    shown.button("Later").click()
    playwright.expect(shown.live.locator(".lr-sample")).to_have_text(latest, use_inner_text=True)
    choice.focus()
    shown.page.keyboard.press("Home")
    playwright.expect(choice.locator("option:checked")).to_have_text("step 10")
    assert shown.steps() == at


def test_names_and_texts_are_shown_as_text(shown: Shown) -> None:
    playwright.expect(shown.live.locator(".lr-name")).to_have_text(NAME)
    assert shown.page.evaluate("window.hacked") is None
    assert shown.live.locator("script").count() == 0
    whole = shown.live.evaluate("node => node.outerHTML")
    assert not {"\u202e", "\u200b"} & set(whole)


def test_the_learning_rate_can_be_scaled_and_nonsense_is_refused(shown: Shown) -> None:
    box = shown.live.get_by_label("Learning rate times")
    assert float(shown.number("learning_rate")) == 0.001
    box.fill("0.5")
    box.press("Enter")
    shown.button("Step").click()
    playwright.expect(shown.live.locator("[data-number=learning_rate]")).to_have_text("5e-4")
    box.fill("-2")
    box.press("Enter")
    playwright.expect(shown.live.get_by_role("alert")).to_contain_text("choose a number above 0")
    playwright.expect(box).to_have_attribute("aria-invalid", "true")
    shown.button("Step").click()
    box.fill("2")
    box.press("Tab")
    playwright.expect(shown.live.get_by_role("alert")).to_be_empty()
    playwright.expect(box).to_have_attribute("aria-invalid", "false")
    shown.button("Step").click()
    playwright.expect(shown.live.locator("[data-number=learning_rate]")).to_have_text("0.002")


def test_nothing_serious_stands_in_the_way_of_anybody_light_or_dark(shown: Shown, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    shown.live.get_by_text("Evaluations as a table").click()
    for theme in ("Light", "Dark"):
        shown.page.evaluate(
            f"window.jupyterapp.commands.execute('apputils:change-theme', {{ theme: 'JupyterLab {theme}' }})"
        )
        scheme = f"getComputedStyle(document.querySelector('.labkit-run')).colorScheme === '{theme.lower()}'"
        shown.page.wait_for_function(scheme)
        accessible(shown.page, ".labkit-run")
        shown.live.screenshot(path=folder / f"live-{theme.lower()}.png")


def test_reloading_the_page_keeps_everything(shown: Shown) -> None:
    before = shown.steps(), shown.points(), shown.number("loss")
    shown.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    shown.page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    for _ in range(3):
        shown.open()
        with suppress(playwright.TimeoutError):
            shown.live.wait_for(timeout=20_000)
            break
        shown.seen.errors.clear()  # ipywidgets gives the kernel four seconds, too few on a busy machine
    shown.expect_state("paused")
    assert (shown.steps(), shown.points(), shown.number("loss")) == before
    assert shown.live.get_by_label("Learning rate times").input_value() == "2"
    shown.button("Step").click()
    shown.expect_more_steps_than(before[0])
    assert shown.stands_still() == before[0] + 1


def test_the_buttons_act_while_a_cell_waits(shown: Shown) -> None:
    shown.run("wait")
    steps = shown.steps()
    shown.button("Resume").click()
    shown.expect_state("training")
    shown.expect_more_steps_than(steps)
    shown.button("Pause").click()
    shown.expect_state("paused")
    steps = shown.stands_still()
    assert "ended" not in shown.output("wait")
    shown.button("Stop").click()
    shown.expect_state("stopped")
    shown.page.wait_for_function("document.body.innerText.includes('ended: False')")
    assert f"Stopped after step {steps}, which is saved." in shown.output("wait")
    assert shown.steps() == steps


def test_after_a_restart_of_the_kernel_the_interrupted_run_can_be_resumed(shown: Shown) -> None:
    shown.button("Resume").click()
    shown.expect_state("training")
    shown.expect_more_steps_than(max(60, shown.steps() + 5))
    shown.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    shown.run("make")
    shown.run("live")
    shown.expect_state("interrupted")
    reached = shown.stands_still()
    assert 60 < reached < 250
    assert shown.points() == reached
    first = shown.live.get_by_label("What it wrote at").locator("option").first
    playwright.expect(first).to_have_text("step 10")
    playwright.expect(shown.button("Start anew")).to_be_visible()
    resume = shown.live.get_by_role("button", name="Resume from step")
    saved = int(resume.inner_text().split()[-1])
    assert 0 < saved <= reached
    resume.press("Enter")
    shown.expect_state("training")
    shown.expect_state("finished", timeout=120_000)
    assert shown.steps() == shown.points() == 250
    playwright.expect(shown.live.get_by_role("status")).to_contain_text("Trained to the end, step 250.")


def test_at_200_percent_it_needs_no_sideways_scrolling(shown: Shown, tmp_path: Path) -> None:
    shown.page.set_viewport_size({"width": 650, "height": 1000})
    room = shown.live.evaluate("node => [node.scrollWidth, node.clientWidth]")
    assert room[0] <= room[1]
    shown.live.screenshot(path=Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path)) / "live-650.png")
    shown.page.set_viewport_size({"width": 1300, "height": 1400})


def test_all_that_while_nothing_left_the_machine_and_no_error_was_logged(shown: Shown) -> None:
    assert (shown.seen.outside, shown.seen.errors) == ([], [])
