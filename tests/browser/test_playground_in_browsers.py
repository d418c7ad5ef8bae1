"""The playground in JupyterLab and in Voila: every control, bad input, odd tokens, rules of accessibility."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from servers import Watch, accessible, darken, opened

from labkit import SampleConfig
from labkit.generation import complete
from labstudio.figures.sampling import next_token_logits, sampling_stages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
playwright = pytest.importorskip("playwright.sync_api")

# What the notebook and this test both import.
ODD = '''
import torch
from labkit import GPT, GPTConfig
from labkit.text import CharTokenizer, GPT2Tokenizer

torch.set_num_threads(1)
SCRIPT = "<script>window.hacked=1</script>"

class Odd(CharTokenizer):
    """Two tokens that are no characters, beside some that hide."""

    def __init__(self, characters):
        super().__init__(characters)
        self.eos_id = None

    def token_bytes(self, token_id):
        if token_id == len(self.characters):
            return SCRIPT.encode()
        return super().token_bytes(token_id)

TOKENIZER = Odd("to be,\\u202e\\u200b\\n<")

def gpt(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=19, d_model=12, n_layers=2, n_heads=2
    )
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model
'''
CELLS = [
    "from labstudio import SamplingPlayground\nfrom odd import *",
    'SamplingPlayground(gpt(TOKENIZER), TOKENIZER, "to be", max_new_tokens=40, models={"another": '
    "(gpt(TOKENIZER, 5), TOKENIZER)})",
    'SamplingPlayground(gpt(GPT2Tokenizer()), GPT2Tokenizer(), "to be", max_new_tokens=3)',
]
SETTINGS = {
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "min_p": "Min-p",
    "repetition_penalty": "Repetition penalty",
}
VOCAB = 11
DEFAULTS = {"temperature": 0.8, "top_k": VOCAB, "top_p": 1, "min_p": 0, "repetition_penalty": 1}


@dataclass
class Shown:
    """A page with a small playground and one whose vocabulary has 50,257 tokens."""

    where: str
    page: Page
    seen: Watch
    odd: ModuleType

    def playground(self, number: int = 0) -> Locator:
        return self.page.locator(".labkit-playground").nth(number)


@pytest.fixture(scope="module", params=["jupyterlab", "voila"])
def shown(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shown]:
    scratch = tmp_path_factory.mktemp(request.param)
    folder = scratch / "notebooks"
    folder.mkdir()
    (folder / "odd.py").write_text(ODD, encoding="utf-8")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "odd.ipynb")
    odd = ModuleType("odd")
    exec(ODD, odd.__dict__)
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.set_default_timeout(20_000)
    with opened(request.param, page, folder / "odd.ipynb", scratch) as seen:
        page.locator(".labkit-playground").nth(1).wait_for()
        yield Shown(request.param, page, seen, odd)
    page.close()


def box(playground: Locator, setting: str) -> Locator:
    return playground.get_by_role("spinbutton", name=f"{SETTINGS[setting]}, as a number").first


def slider(playground: Locator, setting: str) -> Locator:
    return playground.get_by_role("slider", name=SETTINGS[setting]).first


def put(playground: Locator, **values: Any) -> None:
    for setting, value in values.items():
        box(playground, setting).fill(str(value))
        box(playground, setting).press("Enter")


def column(playground: Locator, name: str = "a") -> Locator:
    return playground.locator(f".lp-column[data-column={name}]")


def config(values: dict[str, float]) -> SampleConfig:
    return SampleConfig(max_new_tokens=40, **(DEFAULTS | values))


def expect_bars(shown: Shown, values: dict[str, float], name: str = "a", prompt: str = "to be") -> None:
    """The bars drawn have exactly the pure function's numbers, in its order."""
    ids = shown.odd.TOKENIZER.encode(prompt)
    logits = next_token_logits(shown.odd.gpt(shown.odd.TOKENIZER), ids)
    seen = logits.new_zeros(VOCAB).bool()
    seen[ids] = True
    table = sampling_stages(logits, config(values), seen).table
    rows = [[row["id"], row["raw"], row["tempered"], row["filtered"]] for row in table.to_dict("records")]
    part = column(shown.playground(), name)
    until(shown.page, f"({BARS})(part)", part, rows)
    assert part.evaluate(BARS) == rows


BARS = """part => [...part.querySelectorAll('tbody tr')].map(row => {
    const cells = [...row.querySelectorAll('td[data-stage]')];
    return [Number(cells[0].dataset.id), ...cells.map(cell => Number(cell.dataset.value))];
})"""


def until(page: Page, expression: str, part: Locator, expected: object) -> None:
    """Give the page time to come to what is expected; the assertion after it says what there is instead."""
    script = f"([part, expected]) => JSON.stringify({expression}) === JSON.stringify(expected)"
    with suppress(playwright.TimeoutError):
        page.wait_for_function(script, arg=[part.element_handle(), expected])


def expect_text(shown: Shown, values: dict[str, float], name: str = "a") -> None:
    """The text is the one that `complete` writes."""
    odd = shown.odd
    written = complete(odd.gpt(odd.TOKENIZER), odd.TOKENIZER, "to be", config(values))[0].text
    written = written.replace("\u202e", "U+202E").replace("\u200b", "U+200B")
    pieces = column(shown.playground(), name).locator(".lp-pieces")
    until(shown.page, "part.textContent", pieces, written)
    assert pieces.text_content() == written


def test_the_first_bars_and_text_are_those_of_the_library(shown: Shown) -> None:
    expect_bars(shown, {})
    expect_text(shown, {})
    assert len(column(shown.playground()).evaluate(BARS)) == VOCAB
    assert column(shown.playground()).get_by_role("option").count() == 40


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [("temperature", "ArrowRight", 0.85), ("top_k", "ArrowLeft", VOCAB - 1), ("top_p", "ArrowLeft", 0.99),
     ("min_p", "ArrowUp", 0.01), ("repetition_penalty", "ArrowRight", 1.05)],
)  # fmt: skip
def test_each_slider_moves_by_keyboard_and_by_mouse(
    shown: Shown, setting: str, key: str, value: float
) -> None:
    playground = shown.playground()
    handle = slider(playground, setting)
    handle.focus()
    shown.page.keyboard.press(key)
    expect_bars(shown, {setting: value})
    expect_text(shown, {setting: value})
    assert float(box(playground, setting).input_value()) == value
    assert handle.get_attribute("aria-valuetext") == f"{value:g}"
    size = handle.bounding_box()
    assert size
    shown.page.mouse.click(size["x"] + 0.4 * size["width"], size["y"] + size["height"] / 2)
    moved = json.loads(box(playground, setting).input_value())
    assert abs(moved - value) > 0.04
    expect_bars(shown, {setting: moved})
    put(playground, **{setting: DEFAULTS[setting]})
    expect_bars(shown, {})


def test_number_boxes_take_what_sliders_do_not_and_sliders_follow(shown: Shown) -> None:
    playground = shown.playground()
    values = {"temperature": 1.37, "top_k": 5, "top_p": 0.935, "min_p": 0.015, "repetition_penalty": 1.21}
    put(playground, **values)
    expect_bars(shown, values)
    expect_text(shown, values)
    assert slider(playground, "top_k").get_attribute("aria-valuetext") == "5"
    assert float(slider(playground, "temperature").input_value()) == pytest.approx(1.37, abs=0.03)
    put(playground, **DEFAULTS)
    expect_text(shown, {})


def test_tab_reaches_every_control_in_order(shown: Shown) -> None:
    page, playground = shown.page, shown.playground()
    playground.locator("select").focus()
    names = []
    for _ in range(19):
        names.append(
            page.evaluate(
                """() => { const node = document.activeElement;
                return node.dataset.trait ?? node.getAttribute('role') ?? node.textContent; }"""
            )
        )
        page.keyboard.press("Tab")
    both = [name for setting in SETTINGS for name in (setting, setting)]
    buttons = ["Write", "Stop", "Another text", "Draw 1,000", "Compare two settings"]
    assert names[:19] == ["model_name", "prompt", "Seed, length and stop strings", *buttons, *both, "option"]


BAD = [
    ("temperature", "-1", "temperature=-1 must be at least 0"),
    ("temperature", "", "temperature='' must be a number"),
    ("top_k", "0", "top_k=0 must be at least 1"),
    ("top_k", str(VOCAB + 1), f"above {VOCAB}, the size of the vocabulary"),
    ("top_k", "2.5", "top_k=2.5 must be a whole number"),
    ("top_p", "0", "top_p=0 must be in (0, 1]"),
    ("top_p", "1.5", "top_p=1.5 must be in (0, 1]"),
    ("min_p", "-0.1", "min_p=-0.1 must be in [0, 1]"),
    ("repetition_penalty", "0", "repetition_penalty=0 must be above 0"),
]


def test_bad_numbers_are_explained_and_the_playground_stays_usable(shown: Shown) -> None:
    playground = shown.playground()
    alert = playground.get_by_role("alert")
    for setting, typed, message in BAD:
        put(playground, **{setting: typed})
        playwright.expect(alert).to_contain_text(message)
        playwright.expect(box(playground, setting)).to_have_attribute("aria-invalid", "true")
        expect_bars(shown, {})
        put(playground, **{setting: DEFAULTS[setting]})
        playwright.expect(alert).to_be_empty()
        playwright.expect(box(playground, setting)).to_have_attribute("aria-invalid", "false")
    expect_text(shown, {})


def test_bad_texts_are_explained_and_the_playground_stays_usable(shown: Shown) -> None:
    playground = shown.playground()
    alert = playground.get_by_role("alert")
    playground.get_by_text("Seed, length and stop strings").click()
    for label, typed, message, good in [
        ("Prompt", "", "is empty; type at least one character", "to be"),
        ("Prompt", "to Ω", "'Ω' is not in the alphabet", "to be"),
        ("Stop strings", "Ω", "stop='Ω' can never appear", ""),
        ("Seed", "-3", "seed=-3 must be a whole number", "0"),
        ("Tokens to write", "0", "max_new_tokens=0 must be at least 1", "40"),
    ]:
        entry = playground.get_by_label(label)
        entry.fill(typed)
        entry.blur()
        playwright.expect(alert).to_contain_text(message)
        playwright.expect(entry).to_have_attribute("aria-invalid", "true")
        entry.fill(good)
        entry.blur()
        playwright.expect(alert).to_be_empty()
    expect_text(shown, {})
    playground.get_by_text("Seed, length and stop strings").click()


def test_greedy_and_long_prompts_are_remarked_on(shown: Shown) -> None:
    playground = shown.playground()
    status = playground.get_by_role("status")
    put(playground, temperature=0)
    playwright.expect(status).to_contain_text("Temperature 0 is greedy")
    expect_bars(shown, {"temperature": 0})
    put(playground, temperature=0.8)
    playground.get_by_label("Prompt").fill("to be, to be, to be, to be")
    playground.get_by_label("Prompt").blur()
    playwright.expect(status).to_contain_text("The prompt has 26 tokens; the model reads the last 19.")
    playground.get_by_label("Prompt").fill("to be")
    playground.get_by_label("Prompt").blur()
    expect_bars(shown, {})


def test_odd_tokens_are_shown_and_do_nothing(shown: Shown) -> None:
    playground = shown.playground()
    put(playground, temperature=1.9)
    expect_text(shown, {"temperature": 1.9})
    labels = [label.strip() for label in playground.locator("tbody th").all_inner_texts()]
    assert {shown.odd.SCRIPT, "U+202E", "U+200B", "⏎", "␣", "<"} <= set(labels)
    assert shown.odd.SCRIPT in playground.locator(".lp-pieces").first.text_content()
    assert playground.locator("script").count() == 0
    assert shown.page.evaluate("window.hacked") is None
    whole = playground.evaluate("node => node.outerHTML")
    assert not {"\u202e", "\u200b"} & set(whole)
    put(playground, temperature=0.8)
    expect_text(shown, {})


def test_hover_and_arrow_keys_show_what_each_token_had_beside_it(shown: Shown) -> None:
    page, odd = shown.page, shown.odd
    some = column(shown.playground())
    expected = complete(odd.gpt(odd.TOKENIZER), odd.TOKENIZER, "to be", config({}), logprobs=5)[0].tokens
    panel = some.locator(".lp-details")
    options = some.get_by_role("option")
    options.nth(4).hover()
    playwright.expect(panel).to_contain_text(f"id {expected[4].id}, place 5")
    options.nth(0).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    playwright.expect(options.nth(1)).to_be_focused()
    playwright.expect(panel).to_contain_text(f"id {expected[1].id}, place 2")
    chances = [2.718281828**chance for _, chance in expected[1].alternatives]
    listed = [float(item.split()[-1]) for item in panel.locator("li").all_inner_texts()]
    assert listed == pytest.approx(chances, abs=6e-4)
    assert options.nth(1).get_attribute("aria-selected") == "true"
    page.keyboard.press("End")
    playwright.expect(options.last).to_be_focused()
    for letter in "dxb":  # in JupyterLab: delete, cut, insert below
        page.keyboard.press(letter)
        page.keyboard.press(letter)
    playwright.expect(page.locator(".labkit-playground")).to_have_count(2)


def test_draws_are_laid_over_the_bars(shown: Shown) -> None:
    playground = shown.playground()
    put(playground, top_k=6)
    expect_bars(shown, {"top_k": 6})
    playground.get_by_role("button", name="Draw 1,000").click()
    playwright.expect(playground.locator(".lp-legend").first).to_contain_text("1,000 draws")
    rows = column(playground).locator("tbody tr")
    counts = [int(row.locator(".lp-count").inner_text()) for row in rows.all()]
    assert sum(counts) == 1000
    for row, count in zip(rows.all(), counts, strict=True):
        theory = float(row.locator("td[data-stage=filtered]").get_attribute("data-value") or "nan")
        assert count == pytest.approx(1000 * theory, abs=70)
    assert column(playground).locator(".lp-drawn").count() == 6
    assert column(playground).locator("td[data-cut=true] .lp-cut").count() == VOCAB - 6
    put(playground, top_k=VOCAB)
    expect_bars(shown, {})


def test_two_settings_stand_side_by_side(shown: Shown) -> None:
    playground = shown.playground()
    compare = playground.get_by_role("button", name="Compare two settings")
    assert not column(playground, "b").is_visible()
    compare.press("Enter")
    playwright.expect(compare).to_have_attribute("aria-pressed", "true")
    second = playground.get_by_role("spinbutton", name="Temperature, setting B, as a number")
    second.fill("1.7")
    second.press("Enter")
    expect_bars(shown, {"temperature": 1.7}, "b")
    expect_text(shown, {"temperature": 1.7}, "b")
    expect_bars(shown, {})
    expect_text(shown, {})
    left, right = (column(playground, name).bounding_box() for name in "ab")
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    tops = [column(playground, name).locator(".lp-text").bounding_box() for name in "ab"]
    assert tops[0]["y"] == tops[1]["y"]
    accessible(shown.page, ".labkit-playground")
    compare.click()
    playwright.expect(column(playground, "b")).to_be_hidden()


def test_another_model_can_be_chosen(shown: Shown) -> None:
    playground = shown.playground()
    before = playground.locator(".lp-pieces").first.text_content()
    choice = playground.get_by_label("Model")
    choice.select_option("another")
    playwright.expect(playground.locator(".lp-pieces").first).not_to_have_text(before or "")
    choice.select_option("this notebook's model")
    expect_text(shown, {})


def test_writing_can_be_stopped_and_nothing_jumps(shown: Shown) -> None:
    playground = shown.playground(1)
    playground.scroll_into_view_if_needed()
    height = playground.bounding_box()
    playground.get_by_text("Seed, length and stop strings").click()
    length = playground.get_by_label("Tokens to write at most")
    length.fill("1900")
    length.press("Enter")
    playground.get_by_text("Seed, length and stop strings").click()
    playwright.expect(playground.get_by_role("status")).to_contain_text("Writing")
    options = playground.get_by_role("option")
    playwright.expect(options.nth(10)).to_be_attached()
    playground.get_by_role("button", name="Stop").click()
    playwright.expect(playground.locator(".lp-end").first).to_contain_text("stopped by you")
    playwright.expect(playground.get_by_role("status")).to_contain_text("Ready")
    written = options.count()
    assert 10 < written < 1900
    shown.page.wait_for_timeout(600)
    assert options.count() == written
    assert playground.bounding_box()["height"] == height["height"]


def test_top_k_reaches_from_one_to_fifty_thousand(shown: Shown) -> None:
    playground = shown.playground(1)
    handle = slider(playground, "top_k")
    handle.focus()
    shown.page.keyboard.press("Home")
    playwright.expect(playground.locator(".lp-legend").first).to_contain_text("1 of 50,257 tokens left")
    shown.page.keyboard.press("ArrowRight")
    playwright.expect(playground.locator(".lp-legend").first).to_contain_text("2 of 50,257 tokens left")
    shown.page.keyboard.press("End")
    playwright.expect(playground.locator(".lp-legend").first).to_contain_text("50,257 of 50,257 tokens left")


def test_nothing_serious_stands_in_the_way_of_anybody_light_or_dark(shown: Shown, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    put(shown.playground(), top_k=7, temperature=-1)
    playwright.expect(shown.playground().get_by_role("alert")).not_to_be_empty()
    accessible(shown.page, ".labkit-playground")
    shown.playground().screenshot(path=folder / f"{shown.where}-light.png")
    put(shown.playground(), temperature=0.8)
    darken(shown.page, shown.where, ".labkit-playground")
    accessible(shown.page, ".labkit-playground")
    shown.playground().screenshot(path=folder / f"{shown.where}-dark.png")


def test_at_200_percent_no_playground_needs_sideways_scrolling(shown: Shown, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    shown.page.set_viewport_size({"width": 650, "height": 1000})
    for number in (0, 1):
        room = shown.playground(number).evaluate("node => [node.scrollWidth, node.clientWidth]")
        assert room[0] <= room[1]
        shown.playground(number).screenshot(path=folder / f"{shown.where}-650-{number}.png")
    shown.page.set_viewport_size({"width": 1300, "height": 1400})


def test_all_that_while_nothing_left_the_machine_and_no_error_was_logged(shown: Shown) -> None:
    outside = [url for url in shown.seen.outside if "fontawesome-free" not in url]
    errors = [error for error in shown.seen.errors if "/voila/api/shutdown/" not in error]  # its farewell
    assert (outside, errors) == ([], [])
