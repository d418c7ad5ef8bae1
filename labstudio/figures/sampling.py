"""How settings shape the next token's distribution, as numbers and as bars: raw, tempered, filtered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from labkit.config import SampleConfig
from labkit.generation import draw, next_token_probabilities
from labkit.model import GPT, evaluating
from labkit.text import Tokenizer
from labstudio.figures.base import COLOURS
from labstudio.visible import token_label, visible

STAGES = ("raw", "tempered", "filtered")
TITLES = {
    "raw": "What the model says",
    "tempered": "After penalty and temperature",
    "filtered": "After the filters",
}


@dataclass(frozen=True, eq=False)
class SamplingStages:
    """The next token's distribution before, between and after the settings."""

    table: pd.DataFrame
    """The likeliest tokens by what the model says: columns id, raw, tempered, filtered (probabilities)."""
    entropy: dict[str, float]
    """Of each stage, in bits, over the whole vocabulary."""
    effective: dict[str, float]
    """Effective number of tokens of each stage: as many equally likely ones would have its entropy."""
    kept: int
    """Tokens that can still be drawn."""
    probabilities: dict[str, Tensor]
    """The whole distribution of each stage, (vocab,)."""


def sampling_stages(
    logits: Tensor, config: SampleConfig, seen: Tensor | None = None, *, rows: int = 12
) -> SamplingStages:
    """The three stages of the distribution that `generate` draws the next token from.

    raw: softmax of the logits.  tempered: after repetition penalty and temperature; at temperature 0, its
    limit, all is on the likeliest token.  filtered: after top-k, top-p and min-p; 0 is a token that is never
    drawn.
    logits: (vocab,).  seen: bool (vocab,), what the repetition penalty lowers.  rows: of the table.
    Raises ValueError for logits of another shape, and as `next_token_probabilities` does.
    """
    if logits.ndim != 1:
        raise ValueError(
            f"sampling_stages: logits has shape {tuple(logits.shape)}; expected (vocab,), those of one "
            "position: model(ids)[0, -1]."
        )
    logits = logits.detach().float()
    unfiltered = replace(config, top_k=None, top_p=None, min_p=None)
    stages = {
        "raw": next_token_probabilities(logits, SampleConfig()),
        "tempered": next_token_probabilities(logits, unfiltered, seen),
        "filtered": next_token_probabilities(logits, config, seen),
    }
    likeliest = _largest(logits, rows)
    columns = {"id": likeliest} | {name: stage[likeliest].double() for name, stage in stages.items()}
    entropy = {name: entropy_bits(stage) for name, stage in stages.items()}
    return SamplingStages(
        table=pd.DataFrame({name: column.tolist() for name, column in columns.items()}),
        entropy=entropy,
        effective={name: 2**bits for name, bits in entropy.items()},
        kept=int((stages["filtered"] > 0).sum()),
        probabilities=stages,
    )


def _largest(logits: Tensor, count: int) -> Tensor:
    """Ids of the largest logits, largest first, ties by id; without sorting the whole vocabulary."""
    last = logits.topk(min(count, len(logits))).values[-1]
    ids = (logits >= last).nonzero()[:, 0]
    return ids[logits[ids].sort(descending=True, stable=True).indices][:count]


def entropy_bits(probabilities: Tensor) -> float:
    """Entropy of one distribution, (vocab,), in bits.  Source: Shannon (1948), section 6."""
    return float(torch.special.entr(probabilities.double()).sum()) / math.log(2)


def draw_counts(probabilities: Tensor, draws: int, *, seed: int) -> Tensor:
    """How often each token comes up in `draws` independent draws from (vocab,) probabilities."""
    uniforms = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.bincount(draw(probabilities.cpu(), uniforms), minlength=len(probabilities))


def next_token_logits(model: GPT, ids: Sequence[int]) -> Tensor:
    """Logits of the token after these ids, (vocab,) in float32 on the CPU; of many ids the end is read."""
    batch = torch.tensor([list(ids)[-model.config.context_length :]])
    with evaluating(model), torch.no_grad():
        return model(batch.to(model.token_embedding.weight.device))[0, -1].float().cpu()


def next_token_table(
    model: GPT, tokenizer: Tokenizer, prompt: str, config: SampleConfig, *, rows: int = 8
) -> pd.DataFrame:
    """The likeliest next tokens after the prompt under these settings: columns `token`, `probability`.

    Raises ValueError for an empty prompt, and as `sampling_stages` does.
    """
    ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("next_token_table: the prompt is empty; give at least one character.")
    logits = next_token_logits(model, ids)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[ids] = True
    best = sampling_stages(logits, config, seen).probabilities["filtered"].topk(min(rows, len(logits)))
    tokens = [tokenizer.decode([index]) for index in best.indices.tolist()]
    table = pd.DataFrame({"token": tokens, "probability": best.values.tolist()})
    return table[table["probability"] > 0]


def stage_bars(axes: Sequence[Axes], stages: SamplingStages, tokenizer: Tokenizer) -> None:
    """Draw the three stages side by side, the likeliest token on top.

    axes: three, as `new_figure(3, width=12).axes`.  A token that is cut shows, hatched, what it had before
    the filters. The titles carry entropy and effective number of tokens.
    """
    if len(axes) != len(STAGES):
        raise ValueError(f"stage_bars: got {len(axes)} axes; expected 3: new_figure(3, width=12).axes.")
    table = stages.table
    names = [visible(token_label(tokenizer, token)) for token in table["id"]]
    places = range(len(table))
    for axis, stage, colour in zip(axes, STAGES, COLOURS, strict=False):
        axis.barh(places, table[stage], color=colour)
        if stage == "filtered":
            cut = table["tempered"].where(table["filtered"] == 0, 0.0)
            axis.barh(places, cut, facecolor="none", edgecolor="#595959", hatch="////", label="cut")
            if cut.any():
                axis.legend(loc="lower right")
        axis.set_yticks(places, names)
        axis.invert_yaxis()
        bits, effective = stages.entropy[stage], stages.effective[stage]
        axis.set_title(f"{TITLES[stage]}\n{bits:.2f} bits, like {effective:.1f} equal tokens", fontsize=10)
        axis.set(xlabel="probability", xlim=(0, 1.05 * float(table[list(STAGES)].to_numpy().max())))
