"""The attention explorer in JupyterLab and in Voila: numbers, hover, keyboard, odd tokens, accessibility."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import nbformat
import pytest
import torch
from servers import Watch, accessible, darken, opened

from labkit.analysis import AttentionSteps, attention_steps, head_scores, queries_and_keys

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
playwright = pytest.importorskip("playwright.sync_api")

# What the notebook and this test both import.
READERS = """
import torch
from labkit import GPT, GPTConfig
from labkit.text import CharTokenizer

torch.set_num_threads(1)
TOKENIZER = CharTokenizer("to be,orn<>\\n\\u202e\\u200b\\u05d0\\U0001d54f")
WORDS = ["a", "horse", "my", "kingdom"]
QUERIES = torch.tensor([[0.0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 2, 0], [2, 2, 0, 0]])
KEYS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [2, 0, 0, 2]])
FOREIGN = ["<script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>", "\\u202eevil",
           "zero\\u200bwidth", "\\u05d0\\u05d1\\u05d2", "\\U0001d54f\\U0001f600", "new\\nline"]

def gpt(seed=0):
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size, context_length=13, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2
    )
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model

def big():
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(12, 12, 64, 16, generator=generator) for _ in range(2)]
"""
CELLS = [
    "from labstudio import AttentionExplorer\nfrom readers import *",
    'AttentionExplorer(gpt(), TOKENIZER, "to be or", models={"another": (gpt(5), TOKENIZER)})',
    "AttentionExplorer.by_hand(QUERIES[None], KEYS[None], WORDS)",
    "AttentionExplorer.by_hand(torch.ones(1, 7, 3), torch.eye(7, 3)[None], FOREIGN)",
    'AttentionExplorer.by_hand(*big(), [f"w{number % 9}" for number in range(64)])',
]
MODEL, HAND, ODD, BIG = range(4)
STEPS = {"raw": "1 Raw scores", "scaled": "2 Scaled", "masked": "3 Masked", "weights": "4 Softmax"}


@dataclass
class Shown:
    """A page with an explorer of a small model, of the hand-made case, of odd tokens and of a large model."""

    where: str
    page: Page
    seen: Watch
    readers: ModuleType

    def explorer(self, number: int = MODEL) -> Locator:
        return self.page.locator(".labkit-attention").nth(number)


# With these seeds the traits of one message come in one order here and in the other there.
SEEDS = {"jupyterlab": "1", "voila": "3"}


@pytest.fixture(scope="module", params=["jupyterlab", "voila"])
def shown(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shown]:
    scratch = tmp_path_factory.mktemp(request.param)
    folder = scratch / "notebooks"
    folder.mkdir()
    (folder / "readers.py").write_text(READERS, encoding="utf-8")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "readers.ipynb")
    readers = ModuleType("readers")
    exec(READERS, readers.__dict__)
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.set_default_timeout(60_000)
    playwright.expect.set_options(timeout=60_000)  # for a busy machine
    with opened(
        request.param, page, folder / "readers.ipynb", scratch, PYTHONHASHSEED=SEEDS[request.param]
    ) as seen:
        page.locator(".labkit-attention").nth(BIG).wait_for()
        yield Shown(request.param, page, seen, readers)
    page.close()


def steps_of(shown: Shown, text: str = "to be or", *, seed: int = 0, causal: bool = True) -> AttentionSteps:
    """Of every layer and head, each (layers, heads, seq, seq)."""
    ids = torch.tensor([shown.readers.TOKENIZER.encode(text)])
    queries, keys = queries_and_keys(shown.readers.gpt(seed), ids)
    return attention_steps(queries[:, 0], keys[:, 0], causal=causal)


def pick(explorer: Locator, name: str) -> None:
    explorer.get_by_role("radio", name=name, exact=True).check()


TABLE = """part => [...part.querySelectorAll('tbody tr')].map(
    row => [...row.querySelectorAll('td')].map(cell => cell.dataset.value))"""


def expect_table(shown: Shown, explorer: Locator, expected: torch.Tensor) -> None:
    """The table has exactly these numbers."""
    part = explorer.locator(".la-table")
    wanted = expected.tolist()
    with suppress(playwright.TimeoutError):
        shown.page.wait_for_function(
            f"([part, wanted]) => JSON.stringify(({TABLE})(part).map(row => row.map(Number))) "
            "=== JSON.stringify(wanted.map(row => row.map(Number)))",
            arg=[
                part.element_handle(),
                [[str(value).replace("inf", "Infinity") for value in row] for row in wanted],
            ],
        )
    found = [[float(value) for value in row] for row in part.evaluate(TABLE)]
    assert found == wanted


def heads(explorer: Locator) -> Locator:
    return explorer.get_by_role("listbox", name="Heads").get_by_role("option")


def tokens(explorer: Locator) -> Locator:
    return explorer.get_by_role("listbox", name="Tokens").get_by_role("option")


def says(explorer: Locator) -> Locator:
    return explorer.locator(".la-details")


def cell(explorer: Locator, row: int, column: int, seq: int) -> tuple[float, float]:
    """The middle of a cell of the matrix, on the page."""
    explorer.locator(".la-plot").scroll_into_view_if_needed()
    box = explorer.locator(".la-plot").bounding_box()
    assert box
    return box["x"] + (column + 0.5) / seq * box["width"], box["y"] + (row + 0.5) / seq * box["height"]


# Numbers


def test_every_step_of_every_head_has_the_numbers_of_python(shown: Shown) -> None:
    explorer, expected = shown.explorer(), steps_of(shown)
    pick(explorer, "Table")
    for layer, head in [(0, 0), (0, 3), (1, 2)]:
        heads(explorer).nth(4 * layer + head).click()
        playwright.expect(explorer.locator(".la-chosen h4")).to_have_text(f"Layer {layer}, head {head}")
        for name, label in STEPS.items():
            pick(explorer, label)
            expect_table(shown, explorer, getattr(expected, name)[layer, head])
    caption = explorer.locator("caption")
    playwright.expect(caption).to_have_text(
        "Layer 1, head 2, step 4 Softmax. Rows look, columns are looked at."
    )
    assert explorer.locator("thead th[scope=col]").all_inner_texts()[:4] == ["0:t", "1:o", "2:␣", "3:b"]
    assert explorer.locator("tbody th[scope=row]").count() == 8
    heads(explorer).nth(0).click()
    pick(explorer, "Matrix")


def test_the_matrix_of_the_hand_made_case_has_the_numbers_of_the_lesson(shown: Shown) -> None:
    explorer = shown.explorer(HAND)
    numbers = explorer.locator(".la-numbers span")
    playwright.expect(numbers).to_have_text(
        ["1.000", "0", "0", "0", "0.731", "0.269", "0", "0",
         "0.212", "0.576", "0.212", "0", "0.134", "0.134", "0.366", "0.366"]
    )  # fmt: skip
    pick(explorer, STEPS["raw"])
    playwright.expect(numbers.nth(7)).to_have_text("4.00")
    playwright.expect(explorer.locator(".la-formula")).to_contain_text("head_dim = 4")
    shown.page.keyboard.press("ArrowRight")  # from step to step
    playwright.expect(numbers.nth(7)).to_have_text("2.00")
    playwright.expect(explorer.locator(".la-formula")).to_contain_text("q·k / √4 = q·k / 2")
    shown.page.keyboard.press("ArrowRight")
    playwright.expect(numbers.nth(7)).to_have_text("−∞")
    shown.page.keyboard.press("ArrowRight")
    playwright.expect(numbers.nth(7)).to_have_text("0")
    assert not explorer.get_by_label("Text").is_visible()
    assert not heads(explorer).first.is_visible()


PIXELS = (
    """canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"""
)


def test_thumbnails_and_matrix_have_the_colours_of_the_weights(shown: Shown) -> None:
    explorer, weights = shown.explorer(), steps_of(shown).weights
    seq = weights.shape[-1]
    colours = mpl.colormaps["cividis"]
    pictures = [
        (heads(explorer).nth(number).locator("canvas"), weights[number // 4, number % 4])
        for number in range(8)
    ]
    pictures.append((explorer.locator(".la-plot canvas"), weights[0, 0]))
    for canvas, matrix in pictures:
        pixels = torch.tensor(canvas.evaluate(PIXELS)).view(seq, seq, 4)
        assert torch.equal(pixels[..., 3] == 0, torch.ones(seq, seq).triu(1).bool())
        expected = torch.tensor(colours(matrix.sqrt().numpy()))[..., :3] * 255
        off = (pixels[..., :3] - expected).abs().amax(-1).tril()
        assert off.max() < 14  # of 255: a byte's rounding where the square root is steep


def test_scores_name_and_order_the_heads(shown: Shown) -> None:
    explorer = shown.explorer()
    ids = torch.tensor([shown.readers.TOKENIZER.encode("to be or")])
    scores = head_scores(steps_of(shown).weights[:, None], ids)
    order = explorer.get_by_label("Order")
    order.select_option("previous token")
    ranked = scores["previous_token"].flatten().sort(descending=True)
    names = [f"layer {at // 4}, head {at % 4}, previous token {value:.2f}"
             for at, value in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)]  # fmt: skip
    assert [option.get_attribute("aria-label") for option in heads(explorer).all()] == names
    heads(explorer).first.click()
    title = explorer.locator(".la-chosen h4")
    playwright.expect(title).to_have_text(names[0].split(", prev")[0].capitalize())
    line = explorer.locator(".la-chosen h4 + p")
    playwright.expect(line).to_contain_text(f"previous token {ranked.values[0]:.2f}")
    order.select_option("")
    heads(explorer).first.click()
    playwright.expect(title).to_have_text("Layer 0, head 0")


# Looking


def listed(row: torch.Tensor, names: list[str], digits: int = 3) -> list[str]:
    """The tokens that matter most, with their numbers, as the status line has them."""
    ranked = sorted(range(len(row)), key=lambda at: (-row[at].item(), at))[:5]
    return [f"{at}:{names[at]} {row[at].item():.{digits}f}" for at in ranked]


def test_hover_over_a_token_says_what_it_attends_to_and_shades_it(shown: Shown) -> None:
    explorer, weights = shown.explorer(), steps_of(shown).weights[0, 0]
    names = list("to␣be␣or")
    tokens(explorer).nth(4).hover()
    playwright.expect(says(explorer)).to_contain_text(
        f"4:e attends to {', '.join(listed(weights[4, :5], names))}."
    )
    levels = [
        float(each.evaluate("node => node.style.getPropertyValue('--la-level')"))
        for each in tokens(explorer).all()
    ]
    assert levels == pytest.approx(weights[4].sqrt().tolist(), abs=0.026)
    explorer.locator("h4").first.hover()
    playwright.expect(says(explorer)).to_contain_text("7:r attends to")  # back to the one that was chosen
    incoming = explorer.get_by_label("Who looks at it, instead of what it looks at")
    incoming.check()
    tokens(explorer).nth(4).hover()
    column = [
        f"{at}:{names[at]} {weights[at, 4]:.3f}"
        for at in (weights[4:, 4].argsort(descending=True) + 4).tolist()
    ]
    playwright.expect(says(explorer)).to_contain_text(f"4:e is attended to by {', '.join(column)}.")
    incoming.uncheck()


def test_hover_over_a_cell_gives_its_number_in_every_step(shown: Shown) -> None:
    explorer = shown.explorer(HAND)
    shown.page.mouse.move(*cell(explorer, 3, 2, 4))
    says_cell = "3:kingdom looks at 2:my: raw scores 4.00, scaled 2.00, masked 2.00, softmax 0.366"
    playwright.expect(says(explorer)).to_contain_text(says_cell)
    mark = explorer.locator(".la-cell")
    assert mark.evaluate("node => [node.style.top, node.style.left]") == ["75%", "50%"]
    shown.page.mouse.move(*cell(explorer, 1, 3, 4))
    playwright.expect(says(explorer)).to_contain_text("raw scores 4.00, scaled 2.00, masked −∞, softmax 0")
    assert mark.evaluate("node => [node.style.top, node.style.left]") == ["25%", "75%"]
    explorer.locator("h4").last.hover()
    playwright.expect(mark).to_be_hidden()


def test_arrow_keys_move_over_tokens_heads_and_cells(shown: Shown) -> None:
    page, explorer = shown.page, shown.explorer()
    tokens(explorer).nth(0).click()
    playwright.expect(says(explorer)).to_contain_text("0:t attends to 0:t 1.000.")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    playwright.expect(tokens(explorer).nth(1)).to_be_focused()
    playwright.expect(says(explorer)).to_contain_text("1:o attends to")
    page.keyboard.press("End")
    playwright.expect(tokens(explorer).nth(7)).to_be_focused()
    assert [each.get_attribute("aria-selected") for each in tokens(explorer).all()].index("true") == 7

    heads(explorer).nth(0).click()
    title = explorer.locator(".la-chosen h4")
    keys = {"ArrowDown": (1, 0), "ArrowRight": (1, 1), "ArrowUp": (0, 1), "End": (1, 3), "Home": (0, 0)}
    for key, (layer, head) in keys.items():
        page.keyboard.press(key)
        playwright.expect(title).to_have_text(f"Layer {layer}, head {head}")
    playwright.expect(heads(explorer).nth(0)).to_be_focused()

    matrix = explorer.get_by_role("application")
    matrix.focus()
    playwright.expect(says(explorer)).to_contain_text("7:r looks at 7:r")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    playwright.expect(says(explorer)).to_contain_text("6:o looks at 5:␣")
    page.keyboard.press("Home")
    playwright.expect(says(explorer)).to_contain_text("6:o looks at 0:t")
    for letter in "dxb":  # in JupyterLab: delete, cut, insert below
        page.keyboard.press(letter)
        page.keyboard.press(letter)
    playwright.expect(page.locator(".labkit-attention")).to_have_count(4)


def test_tab_reaches_every_control_in_order(shown: Shown) -> None:
    page, explorer = shown.page, shown.explorer()
    explorer.locator("select").first.focus()
    names = []
    for _ in range(10):
        names.append(
            page.evaluate(
                """() => { const node = document.activeElement, label = node.labels?.[0] ?? node;
                return node.dataset.trait ?? node.getAttribute('role') ?? label.textContent; }"""
            )
        )
        page.keyboard.press("Tab")
    mask, incoming = "Mask: hide later tokens", "Who looks at it, instead of what it looks at"
    first = ["model_name", "text", "Read again", "Order", "option", "4 Softmax"]
    assert names == [*first, mask, incoming, "option", "Matrix"]
    playwright.expect(explorer.get_by_role("application")).to_be_focused()


def test_lines_join_a_token_to_what_it_looks_at(shown: Shown) -> None:
    explorer, weights = shown.explorer(), steps_of(shown).weights[0, 0]
    pick(explorer, "Arcs")
    left, right = explorer.locator(".la-left span"), explorer.locator(".la-right span")
    assert explorer.locator(".la-all line").count() == 8 * 9 // 2
    left.nth(5).hover()
    lines = explorer.locator(".la-some line")
    playwright.expect(lines).to_have_count(6)
    widths = {
        line.get_attribute("y2"): float(line.get_attribute("stroke-width") or 0) for line in lines.all()
    }
    for column in range(6):
        width = 0.5 + 4 * weights[5, column].item() ** 0.5
        assert widths[f"{100 * (column + 0.5) / 8:g}%"] == pytest.approx(width, abs=6e-3)
    right.nth(5).hover()
    playwright.expect(lines).to_have_count(3)
    playwright.expect(says(explorer)).to_contain_text("5:␣ is attended to by")
    assert {line.get_attribute("y2") for line in lines.all()} == {f"{100 * 5.5 / 8:g}%"}
    left.nth(2).click()
    playwright.expect(tokens(explorer).nth(2)).to_have_attribute("aria-selected", "true")
    pick(explorer, "Matrix")


# What Python is asked for


def test_without_the_mask_the_future_is_seen_and_named(shown: Shown) -> None:
    explorer = shown.explorer()
    leak = explorer.locator(".la-leak")
    playwright.expect(leak).to_be_hidden()
    pick(explorer, "Table")
    explorer.get_by_label("Mask: hide later tokens").uncheck()
    playwright.expect(leak).to_contain_text("the future leaks")
    expected = steps_of(shown, causal=False)
    expect_table(shown, explorer, expected.weights[0, 0])
    pick(explorer, STEPS["masked"])
    expect_table(shown, explorer, expected.scaled[0, 0])
    pick(explorer, STEPS["weights"])
    pixels = torch.tensor(heads(explorer).nth(3).locator("canvas").evaluate(PIXELS)).view(8, 8, 4)
    assert bool((pixels[..., 3] == 255).all())
    explorer.get_by_label("Mask: hide later tokens").check()
    playwright.expect(leak).to_be_hidden()
    expect_table(shown, explorer, steps_of(shown).weights[0, 0])
    pick(explorer, "Matrix")


def type_text(explorer: Locator, text: str) -> None:
    explorer.get_by_label("Text").fill(text)
    explorer.get_by_label("Text").blur()


def test_a_text_of_ones_own_is_read_and_what_is_wrong_with_it_is_said(shown: Shown) -> None:
    explorer = shown.explorer()
    pick(explorer, "Table")
    type_text(explorer, "be or to")
    expect_table(shown, explorer, steps_of(shown, "be or to").weights[0, 0])
    alert = explorer.get_by_role("alert")
    for wrong, message in [
        ("", "is empty; type at least one character"),
        ("to Ω", "'Ω' is not in the alphabet"),
    ]:
        type_text(explorer, wrong)
        playwright.expect(alert).to_contain_text(message)
        playwright.expect(explorer.get_by_label("Text")).to_have_attribute("aria-invalid", "true")
        expect_table(shown, explorer, steps_of(shown, "be or to").weights[0, 0])
    type_text(explorer, "to be or not to be")
    playwright.expect(alert).to_be_empty()
    notice = explorer.get_by_role("status").first
    playwright.expect(notice).to_have_text("The text has 18 tokens; the last 13 are read and shown.")
    expect_table(shown, explorer, steps_of(shown, "to be or not to be"[-13:]).weights[0, 0])
    type_text(explorer, "to be or")
    playwright.expect(notice).to_be_empty()
    pick(explorer, "Matrix")


def test_shorter_and_longer_texts_follow_each_other(shown: Shown) -> None:
    explorer = shown.explorer()
    pick(explorer, "Table")
    for text in ("to", "to be or not", "be", "to be or"):
        type_text(explorer, text)
        expect_table(shown, explorer, steps_of(shown, text).weights[0, 0])
        assert tokens(explorer).count() == len(text)
    pick(explorer, "Matrix")


def test_another_model_can_be_chosen(shown: Shown) -> None:
    explorer = shown.explorer()
    pick(explorer, "Table")
    explorer.get_by_label("Model").select_option("another")
    expect_table(shown, explorer, steps_of(shown, seed=5).weights[0, 0])
    explorer.get_by_label("Model").select_option("this notebook's model")
    expect_table(shown, explorer, steps_of(shown).weights[0, 0])
    pick(explorer, "Matrix")


def test_foreign_tokens_are_text_everywhere(shown: Shown) -> None:
    model, odd = shown.explorer(), shown.explorer(ODD)
    type_text(model, "<o>\u202e\u200b\u05d0\U0001d54f\nb")
    names = ["<", "o", ">", "U+202E", "U+200B", "\u05d0", "\U0001d54f", "⏎", "b"]
    playwright.expect(tokens(model)).to_have_text(names)
    type_text(model, "to be or")
    playwright.expect(tokens(model)).to_have_count(8)
    script, image = shown.readers.FOREIGN[:2]
    shown_as = [
        script,
        image.replace(" ", "␣"),
        "U+202Eevil",
        "zeroU+200Bwidth",
        *shown.readers.FOREIGN[4:6],
        "new⏎line",
    ]
    for view in ("Arcs", "Table", "Matrix"):
        pick(odd, view)
        assert tokens(odd).all_inner_texts() == shown_as
        whole = odd.evaluate("node => node.outerHTML")
        assert not {"\u202e", "\u200b"} & set(whole)
        assert odd.locator("script, img, b").count() == 0
    for number, name in enumerate(shown_as):
        tokens(odd).nth(number).hover()
        playwright.expect(says(odd)).to_contain_text(f"{number}:{name} attends to")
    assert shown.page.evaluate("window.hacked") is None


# A large model


WORK = """async ([root, plot]) => {
    const box = plot.getBoundingClientRect();
    const touched = new Set();
    const observer = new MutationObserver(records => records.forEach(({ target }) => touched.add(target)));
    const found = { work: [], frames: [], counts: [], redrawn: 0 };
    for (let number = 0; number < 200; number += 1) {
        const [row, column] = [(number * 37) % 64, (number * 11) % 64];
        const [x, y] = [(column + 0.5) / 64 * box.width, (row + 0.5) / 64 * box.height];
        const event = new PointerEvent(plot.matches('.la-plot') ? 'pointermove' : 'mouseover',
            { clientX: box.left + x, clientY: box.top + y, bubbles: true });
        observer.observe(root, { subtree: true, childList: true, attributes: true, characterData: true });
        const start = performance.now();
        (plot.matches('.la-plot') ? plot : plot.children[row]).dispatchEvent(event);
        root.getBoundingClientRect();
        found.work.push(performance.now() - start);
        await new Promise(done => requestAnimationFrame(() => {
            const channel = new MessageChannel();
            channel.port1.onmessage = done;
            channel.port2.postMessage(0);
        }));
        found.frames.push(performance.now() - start);
        found.counts.push(touched.size);
        if ([...touched].some(node => node.closest?.('.la-heads, canvas, .la-numbers, .la-table, .la-all'))) {
            found.redrawn += 1;
        }
        touched.clear();
        observer.disconnect();
    }
    return found;
}"""


def test_hovering_over_a_large_model_touches_only_what_it_changes(shown: Shown, tmp_path: Path) -> None:
    explorer = shown.explorer(BIG)
    explorer.scroll_into_view_if_needed()
    assert heads(explorer).count() == 144
    measured: dict[str, Any] = {}
    for view, selector in {"Arcs": ".la-left", "Matrix": ".la-plot"}.items():
        pick(explorer, view)
        part = explorer.locator(selector).element_handle()
        found = shown.page.evaluate(WORK, [explorer.element_handle(), part])
        assert found.pop("redrawn") == 0
        assert 1 < max(found["counts"]) <= 2 * 64 + 20  # the tokens' shades, and what the pointer moves
        measured[view] = {name: (statistics.median(each), max(each)) for name, each in found.items()}
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    (folder / f"{shown.where}-hover.json").write_text(json.dumps(measured), encoding="utf-8")
    assert explorer.locator(".la-all line").count() == 8 * 57 + 28  # at most 8 lines a token


def test_a_head_of_a_large_model_is_the_one_asked_for(shown: Shown) -> None:
    explorer = shown.explorer(BIG)
    heads(explorer).nth(143).click()
    playwright.expect(explorer.locator(".la-chosen h4")).to_have_text("Layer 11, head 11")
    queries, keys = shown.readers.big()
    expected = attention_steps(queries, keys)
    pick(explorer, "Table")
    for name, label in STEPS.items():
        pick(explorer, label)
        expect_table(shown, explorer, getattr(expected, name)[11, 11])
    pick(explorer, "Matrix")


# For everybody


def test_nothing_serious_stands_in_the_way_of_anybody_light_or_dark(shown: Shown, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    type_text(shown.explorer(), "to Ω")
    playwright.expect(shown.explorer().get_by_role("alert")).not_to_be_empty()
    for theme in ("light", "dark"):
        if theme == "dark":
            darken(shown.page, shown.where, ".labkit-attention")
        for view in ("Matrix", "Arcs", "Table"):
            for number in (MODEL, HAND, BIG):
                pick(shown.explorer(number), view)
            accessible(shown.page, ".labkit-attention")
            shown.explorer().screenshot(path=folder / f"{shown.where}-{theme}-{view}.png")
        for number in (HAND, ODD, BIG):
            pick(shown.explorer(number), "Matrix")
            shown.explorer(number).screenshot(path=folder / f"{shown.where}-{theme}-{number}.png")


@pytest.mark.parametrize("width", [700, 650])  # beside a sidebar; a page of 1300 at 200 %
def test_narrow_pages_need_no_sideways_scrolling(shown: Shown, width: int, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    shown.page.set_viewport_size({"width": width, "height": 1000})
    for number in (MODEL, HAND, ODD, BIG):
        for view in ("Arcs", "Table", "Matrix"):
            pick(shown.explorer(number), view)
            room = shown.explorer(number).evaluate("node => [node.scrollWidth, node.clientWidth]")
            assert room[0] <= room[1]
        shown.explorer(number).screenshot(path=folder / f"{shown.where}-{width}-{number}.png")
    shown.page.set_viewport_size({"width": 1300, "height": 1400})


def test_all_that_while_nothing_left_the_machine_and_no_error_was_logged(shown: Shown) -> None:
    outside = [url for url in shown.seen.outside if "fontawesome-free" not in url]
    errors = [error for error in shown.seen.errors if "/voila/api/shutdown/" not in error]  # its farewell
    assert (outside, errors) == ([], [])
