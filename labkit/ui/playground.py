"""Sliders for sampling: a pure function makes the table, a renderer makes the HTML, a widget joins them."""

from __future__ import annotations

import html

import ipywidgets as widgets
import pandas as pd

from labkit.config import SampleConfig
from labkit.generation import generate
from labkit.model import GPT
from labkit.text import Tokenizer
from labkit.ui.figures import visible
from labkit.ui.sampling_stages import next_token_table


def render_sample(prompt: str, text: str, table: pd.DataFrame) -> str:
    """HTML of a sample (the prompt in bold) above its table of next tokens; all text is escaped."""
    bars = "".join(
        f"<tr><td><code>{html.escape(visible(token))}</code></td><td style='text-align:right'>"
        f"{probability:.3f}</td><td><div style='background:#0072B2;height:0.8em;"
        f"width:{100 * probability:.0f}px'></div></td></tr>"
        for token, probability in table.itertuples(index=False)
    )
    return (
        f"<pre style='white-space:pre-wrap'><b>{html.escape(prompt)}</b>{html.escape(text)}</pre>"
        f"<table><caption>First token after the prompt</caption><thead><tr><th scope='col'>token</th>"
        f"<th scope='col'>probability</th><th scope='col'></th></tr></thead><tbody>{bars}</tbody></table>"
    )


class SamplingPlayground(widgets.VBox):
    """A temperature and a top-k slider above the text that a model writes with them.

    Each slider has a number box beside it that says the same, for keyboards and screen readers. The same
    settings always give the same text.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompt: str = "\n",
        *,
        max_new_tokens: int = 160,
        seed: int = 0,
    ) -> None:
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.max_new_tokens, self.seed = max_new_tokens, seed
        size = tokenizer.vocab_size
        self.temperature, temperature_row = _labelled(
            "temperature", widgets.FloatSlider, widgets.BoundedFloatText, value=0.8, min=0, max=2, step=0.1
        )
        self.top_k, top_k_row = _labelled(
            "top-k", widgets.IntSlider, widgets.BoundedIntText, value=size, min=1, max=size, step=1
        )
        self.output = widgets.HTML()
        for slider in (self.temperature, self.top_k):
            slider.observe(self._update, names="value")
        self._update()
        super().__init__([temperature_row, top_k_row, self.output])

    @property
    def config(self) -> SampleConfig:
        """The settings that the sliders stand at."""
        return SampleConfig(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature.value, top_k=self.top_k.value
        )

    def _update(self, change: object = None) -> None:
        ids = self.tokenizer.encode(self.prompt)
        new = generate(self.model, ids, self.config, seed=self.seed)[len(ids) :]
        table = next_token_table(self.model, self.tokenizer, self.prompt, self.config)
        self.output.value = render_sample(self.prompt, self.tokenizer.decode(new.tolist()), table)


def _labelled(
    name: str, slider_type: type[widgets.Widget], box_type: type[widgets.Widget], **range_: float
) -> tuple[widgets.Widget, widgets.HBox]:
    slider = slider_type(
        description=name,
        continuous_update=False,
        readout=False,
        style={"description_width": "initial"},
        **range_,
    )
    box = box_type(description=f"{name} as a number", style={"description_width": "initial"}, **range_)
    widgets.link((slider, "value"), (box, "value"))
    return slider, widgets.HBox([slider, box])
