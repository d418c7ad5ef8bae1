"""The card of the shipped model: labkit/pretrained/README.md, written by make_checkpoint.py."""

from __future__ import annotations

import re
from typing import Any

from labkit.text import Corpus
from labkit.training import Run

SMOOTH = 50
"""Steps over which the training loss is averaged."""

RECIPE = (
    "max_steps", "batch_size", "optimizer", "muon_learning_rate", "learning_rate", "betas", "weight_decay",
    "schedule", "warmup_steps", "min_learning_rate", "grad_clip", "precision", "threads", "seed",
)  # fmt: skip
"""Fields of TrainConfig that the card shows."""

CARD = """\
# The model that comes with labkit

A small GPT that writes in the manner of Shakespeare's plays, so that lessons on sampling and on weights have
something worth sampling without an hour of training first.

```python
from labkit.weights import load_pretrained

model, tokenizer = load_pretrained()
```

On the command line `labkit sample` writes with it when no run is named: `labkit sample --prompt "ROMEO."`

Everything in this folder is written by `make checkpoint`, this file too: change the recipe, not the result.

## The model

GPT-2's architecture, smaller: {n_layers} blocks, {n_heads} heads, {d_model} features, a context of
{context_length} tokens, learned positions, layer norm, biases, exact GELU, the output layer tied to the
token embedding. {parameters:,} parameters, stored as float16 ({megabytes:.1f} MB), computed in float32.
The tokenizer is a byte-level BPE of {vocab_size:,} ids, trained on the training plays.

## How it was trained

From random initial weights, {steps:,} steps of {step_tokens:,} tokens: {tokens:,} tokens in all,
{epochs:.1f} times the training text. It took {minutes:.0f} minutes by the clock with {hardware}, which
counts whatever else the machine had to do; undisturbed it takes about half an hour.

{recipe}

Muon trains the matrices of the blocks, AdamW with `learning_rate`, `betas` and `weight_decay` the rest.
`config.json` has every field; the recipe that can be run is `scripts/make_checkpoint.py`.

| step | training loss | held-out loss |
|---:|---:|---:|
{curve}

Nats per token. Training loss: mean of the {smooth} steps before. Held-out loss: on {eval_windows} windows of
the validation plays. All metrics of the run are in `benchmarks/results/runs/pretrained.zip`.

## Data

{source}; {licence}. Training: {train_documents} plays, {train_tokens:,} tokens. Held out as whole
plays: {val} (validation); {test} (test). Settings were chosen by the validation plays; the test plays
were looked at once, for the table below.

- sha256 of the training text: `{train_sha256}`
- `load_corpus("{corpus}").fingerprint`: `{fingerprint}`

## Results

| plays | loss (nats per token) | perplexity | bits per byte | tokens |
|---|---:|---:|---:|---:|
{results}

Measured on the stored float16 weights over the whole plays: each token but the first is predicted once, in
windows of {context_length} tokens side by side. Perplexity compares models that share this tokenizer; bits
per byte compares across tokenizers.

## Ten samples

Neither chosen nor edited: prompt number i with seed i, temperature {temperature}, top-p {top_p},
{max_new_tokens} new tokens. Of their {words:,} words {known:.1%} are words of the plays. The longest passage
that stands word for word in the training plays has {copied} words.

{samples}
## What it is not for

It knows {train_documents} plays and nothing else: no facts, no instructions, no modern English. Beyond a few
lines it has no plot, and speakers forget what was said. It can repeat phrases of the plays word for word, and
their insults, violence and prejudices with them. Use it to learn how sampling, evaluation and weights work,
not where anybody relies on what it says.
"""


def card(config: dict[str, Any], corpus: Corpus, run: Run, samples: list[str]) -> str:
    """The card of a model, in Markdown: its config.json, the run that trained it, and what it wrote."""
    training, recipe, data = config["training"], config["recipe"], config["data"]
    words = [word for text in samples for word in word_list(text)]
    known = set(word_list(corpus.text("all")))
    return CARD.format_map(
        config["model"] | recipe | training | data | config["samples"]
        | {
            "parameters": config["weights"]["parameters"],
            "megabytes": config["weights"]["bytes"] / 1e6,
            "step_tokens": training["tokens"] // training["steps"],
            "epochs": training["tokens"] / data["train_tokens"],
            "recipe": recipe_table(recipe),
            "curve": curve_table(run),
            "smooth": SMOOTH,
            "train_documents": len(corpus.train),
            "val": ", ".join(data["val"]),
            "test": ", ".join(data["test"]),
            "results": results_table(config["results"]),
            "words": len(words),
            "known": sum(word in known for word in words) / len(words),
            "copied": longest_copy(samples, corpus.text("train")),
            "samples": "\n".join(map(fenced, range(len(samples)), config["samples"]["prompts"], samples)),
        }
    )  # fmt: skip


def recipe_table(recipe: dict[str, Any]) -> str:
    rows = [f"| {name} | {recipe[name]} |" for name in RECIPE]
    return "\n".join(["| field of TrainConfig | value |", "|---|---|", *rows])


def curve_table(run: Run) -> str:
    losses = {row["step"]: row["loss"] for row in run.rows("metrics") if row["event"] == "step"}
    rows = []
    for row in run.rows("metrics"):
        if row["event"] == "evaluation":
            last = [losses[step] for step in range(max(1, row["step"] - SMOOTH + 1), row["step"] + 1)]
            shown = f"{sum(last) / len(last):.2f}" if last else ""
            rows.append(f"| {row['step']:,} | {shown} | {row['val_loss']:.2f} |")
    return "\n".join(rows)


def results_table(results: dict[str, Any]) -> str:
    names = {"val": "validation", "test": "test"}
    return "\n".join(
        f"| {names[split]} | {row['loss']:.4f} | {row['perplexity']:.1f} | {row['bits_per_byte']:.4f} | "
        f"{row['tokens']:,} |"
        for split, row in results.items()
    )


def word_list(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def longest_copy(samples: list[str], text: str) -> int:
    """Most words in a row, of any sample, that stand so in a text."""
    haystack = f" {' '.join(word_list(text))} "
    longest = 0
    for words in map(word_list, samples):
        for start in range(len(words)):
            while start + longest < len(words):
                if f" {' '.join(words[start : start + longest + 1])} " not in haystack:
                    break
                longest += 1
    return longest


def fenced(seed: int, prompt: str, text: str) -> str:
    return f"Prompt {prompt!r}, seed {seed}:\n\n```text\n{text}\n```\n"
