"""The sampling playground: the table is the distribution, the HTML is safe, the sliders do something."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import generate
from labkit.text import CharTokenizer
from labkit.ui import SamplingPlayground, render_sample

TOKENIZER = CharTokenizer.from_text("to be, or not <b>&\n ")


def gpt() -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size, context_length=7, d_model=10, n_layers=2, n_heads=2, dropout=0.5
    )
    model = GPT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


# The HTML


class Reader(HTMLParser):
    """Collects tags and text as a browser would see them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", "</pre><img src=x onerror=alert(1)>", "a & <b> \"'"]
)
@pytest.mark.parametrize("place", ["prompt", "text", "token"])
def test_text_from_a_model_or_corpus_never_becomes_html(place: str, evil: str) -> None:
    parts = {"prompt": "to be", "text": " or not", "token": "x"}
    harmless = Reader(_render(parts))
    attacked = Reader(_render(parts | {place: evil}))
    assert attacked.tags == harmless.tags
    assert evil.replace(" ", "␣" if place == "token" else " ") in attacked.text


def _render(parts: dict[str, str]) -> str:
    table = pd.DataFrame({"token": [parts["token"], "y"], "probability": [0.75, 0.25]})
    return render_sample(parts["prompt"], parts["text"], table)


def test_the_rendered_table_has_a_caption_headings_and_rounded_numbers() -> None:
    page = Reader(_render({"prompt": "to", "text": " be", "token": " x"}))
    assert page.tags.count("caption") == 1
    assert page.tags.count("tr") == 3
    assert page.tags.count("th") == 3
    assert "0.750" in page.text
    assert "␣x" in page.text


# The widget


def playground(**options: Any) -> SamplingPlayground:
    return SamplingPlayground(gpt(), TOKENIZER, "to be", **{"max_new_tokens": 30} | options)


def test_the_playground_shows_what_generate_writes() -> None:
    some = playground(seed=3)
    ids = generate(some.model, TOKENIZER.encode("to be"), some.config, seed=3)
    page = Reader(some.output.value)
    assert page.text.startswith(TOKENIZER.decode(ids.tolist()))
    assert some.config == SampleConfig(max_new_tokens=30, temperature=0.8, top_k=TOKENIZER.vocab_size)


@pytest.mark.parametrize(("slider", "value"), [("temperature", 0.1), ("temperature", 2.0), ("top_k", 1)])
def test_moving_a_slider_changes_the_text_and_moving_it_back_restores_it(slider: str, value: float) -> None:
    some = playground()
    before, start = some.output.value, getattr(some, slider).value
    getattr(some, slider).value = value
    assert getattr(some.config, slider) == value
    moved = some.output.value
    assert _written(moved) != _written(before)
    assert moved.partition("<table>")[2] != before.partition("<table>")[2]
    getattr(some, slider).value = start
    assert some.output.value == before


def _written(page: str) -> str:
    return page.partition("<table>")[0]


def test_top_k_of_one_and_temperature_zero_write_the_same_greedy_text() -> None:
    one, zero = playground(), playground()
    one.top_k.value = 1
    zero.temperature.value = 0
    assert _written(one.output.value) == _written(zero.output.value)


@pytest.mark.parametrize(("slider", "value"), [("temperature", 1.4), ("top_k", 4)])
def test_slider_and_number_box_say_the_same_and_are_labelled(slider: str, value: float) -> None:
    some = playground()
    row = some.children[0 if slider == "temperature" else 1]
    handle, box = row.children
    assert handle is getattr(some, slider)
    assert handle.description
    assert box.description
    handle.value = value
    assert box.value == value
    before = some.output.value
    box.value = 1
    assert handle.value == 1
    assert some.output.value != before  # the box moves the text too


def test_the_same_settings_give_the_same_page_and_another_seed_another() -> None:
    assert playground().output.value == playground().output.value
    assert playground(seed=1).output.value != playground().output.value


def test_the_slider_waits_until_it_is_let_go() -> None:
    some = playground()
    assert not some.temperature.continuous_update
    assert not some.top_k.continuous_update


def test_the_playground_escapes_what_the_prompt_brings() -> None:
    some = SamplingPlayground(gpt(), TOKENIZER, "<b>", max_new_tokens=5)
    assert Reader(some.output.value).tags.count("b") == 1  # our own
