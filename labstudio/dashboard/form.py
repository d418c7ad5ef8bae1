"""The form that starts a training: what can be chosen, and the arguments of `labkit train` that follow."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from labkit.analysis.costs import parameter_count
from labkit.config import MODEL_PRESETS, TRAIN_PRESETS, DataConfig, GPTConfig, TrainConfig
from labkit.io import check_name
from labkit.text.corpus import corpus_names

TRAINING_BYTES = 16
"""Per parameter: weight, gradient and two moments, in float32."""

CHARACTERS = 100
"""Of an alphabet, about: what trainings from here read is split into characters."""

USUAL = {"eval_every": 100, "sample_every": 250, "checkpoint_every": 250}
"""Steps between these in a long training; a short one has four of each."""

DEFAULTS = {
    "preset": "char-mini", "recipe": "", "corpus": "shakespeare", "max_steps": 1000, "learning_rate": "",
    "name": "", "seed": 0,
}  # fmt: skip


def form_choices() -> dict[str, Any]:
    """What the form offers: shapes whose training fits into memory, recipes, named corpora; and defaults."""
    presets: list[tuple[str, str]] = []
    for name, shape in MODEL_PRESETS.items():
        if shape in [MODEL_PRESETS[other] for other, _ in presets]:
            continue  # another name of the same
        size = parameter_count(GPTConfig.preset(name, vocab_size=CHARACTERS))
        if TRAINING_BYTES * size < _memory():
            presets.append((name, f"{name}, {size / 1e6:,.1f} M parameters"))
    recipes = [("", "labkit's usual settings"), *((name, _in_words(name)) for name in TRAIN_PRESETS)]
    return {"presets": presets, "recipes": recipes, "corpora": corpus_names(), "defaults": DEFAULTS}


def train_arguments(options: dict[str, Any]) -> list[str]:
    """The arguments of `labkit train`, none of which can be taken for another option.

    options: preset, recipe ("" for the usual settings), corpus, max_steps, learning_rate ("" for the
    recipe's), seed, and name ("" for the usual one).
    Raises ValueError for what can be seen to be wrong without reading the corpus.
    """
    if missing := sorted(DEFAULTS.keys() - dict(options).keys()):
        raise ValueError(f"The form lacks {', '.join(missing)}.")
    recipe, preset, corpus, name = (str(options[each]) for each in ("recipe", "preset", "corpus", "name"))
    if not corpus.strip():
        raise ValueError("corpus is empty: give a name from the list, or the path of a text.")
    GPTConfig.preset(preset)
    DataConfig(corpus=corpus)
    if name:
        check_name(name, "name")
    given = {field: options[field] for field in ("max_steps", "seed")}
    if options["learning_rate"] != "":
        given["learning_rate"] = options["learning_rate"]
    config = TrainConfig.preset(recipe, **given) if recipe else TrainConfig(**given)
    if config.max_steps is None:
        raise ValueError("max_steps=None must be a whole number.")
    values = {field: getattr(config, field) for field in TRAIN_PRESETS.get(recipe, {}).keys() | given}
    values |= {field: min(usual, max(1, config.max_steps // 4)) for field, usual in USUAL.items()}
    arguments = [f"--preset={preset}", f"--corpus={corpus}", *([f"--name={name}"] if name else [])]
    for field, value in sorted(values.items()):
        option = f"--{field.replace('_', '-')}"
        arguments += [option, *map(str, value)] if isinstance(value, tuple) else [f"{option}={value}"]
    return arguments


def _in_words(recipe: str) -> str:
    settings = TRAIN_PRESETS[recipe]
    return f"{recipe} ({settings.get('optimizer', 'adamw')}, {settings['schedule']})"


def _memory() -> int:
    """Bytes that a model may take: of the first GPU, where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)
