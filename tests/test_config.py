"""Configurations refuse what cannot work, and the presets are the published shapes."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import pytest
import torch

from labkit import GPT, GPTConfig, SampleConfig, TrainConfig
from labkit.config import MODEL_PRESETS, TRAIN_PRESETS, as_dict

ODD_MODEL = {"vocab_size": 11, "context_length": 9, "d_model": 10, "n_layers": 1, "n_heads": 2}

BAD_MODELS: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 0}, "GPTConfig: vocab_size=0 must be at least 1."),
    ({"vocab_size": "many"}, "GPTConfig: vocab_size='many' must be a whole number."),
    ({"vocab_size": None}, "GPTConfig: vocab_size=None must be a whole number."),
    ({"context_length": -3}, "GPTConfig: context_length=-3 must be at least 1."),
    ({"context_length": 9.0}, "GPTConfig: context_length=9.0 must be a whole number."),
    ({"d_model": 0}, "GPTConfig: d_model=0 must be at least 1."),
    ({"n_layers": 0}, "GPTConfig: n_layers=0 must be at least 1."),
    ({"n_layers": True}, "GPTConfig: n_layers=True must be a whole number."),
    ({"n_heads": 0}, "GPTConfig: n_heads=0 must be at least 1."),
    ({"n_heads": 3}, "n_heads=3 does not divide d_model=10. Choose n_heads from 1, 2, 5, 10."),
    ({"n_kv_heads": 0}, "GPTConfig: n_kv_heads=0 must be at least 1."),
    ({"n_heads": 5, "n_kv_heads": 2}, "GPTConfig: n_kv_heads=2 does not divide n_heads=5."),
    ({"n_kv_heads": 4}, "GPTConfig: n_kv_heads=4 does not divide n_heads=2."),
    ({"d_ff": 0}, "GPTConfig: d_ff=0 must be at least 1."),
    ({"dropout": 1.0}, "GPTConfig: dropout=1.0 must be in [0, 1)."),
    ({"dropout": -0.1}, "GPTConfig: dropout=-0.1 must be in [0, 1)."),
    ({"attention_dropout": 1.5}, "GPTConfig: attention_dropout=1.5 must be in [0, 1)."),
    ({"dropout": math.nan}, "GPTConfig: dropout=nan must be finite."),
    ({"dropout": "0.1"}, "GPTConfig: dropout='0.1' must be a number."),
    ({"dropout": False}, "GPTConfig: dropout=False must be a number."),
    ({"bias": 1}, "GPTConfig: bias=1 must be True or False."),
    ({"tie_weights": "yes"}, "GPTConfig: tie_weights='yes' must be True or False."),
    (
        {"positions": "alibi"},
        "positions='alibi' is not known. Choose from learned, sinusoidal, rotary, none.",
    ),
    ({"norm": "batchnorm"}, "GPTConfig: norm='batchnorm' is not known. Choose from layernorm, rmsnorm."),
    ({"activation": "relu"}, "activation='relu' is not known. Choose from gelu, gelu_tanh, swiglu."),
    ({"positions": "rotary"}, "positions='rotary' rotates pairs of features, so head_dim=5"),
    ({"norm_eps": 0.0}, "GPTConfig: norm_eps=0.0 must be above 0"),
    ({"rope_base": 1.0}, "rope_base=1.0 above 1."),
    ({"rope_base": math.inf}, "GPTConfig: rope_base=inf must be finite."),
]

BAD_TRAININGS: list[tuple[dict[str, Any], str]] = [
    ({"max_steps": 0}, "TrainConfig: max_steps=0 must be at least 1."),
    ({"max_steps": 10.0}, "TrainConfig: max_steps=10.0 must be a whole number."),
    ({"max_steps": 10, "epochs": 1.0}, "TrainConfig: give max_steps=10 or epochs=1.0, not both."),
    ({"epochs": 0.0}, "TrainConfig: epochs=0.0 must be above 0."),
    ({"epochs": math.inf}, "TrainConfig: epochs=inf must be finite."),
    ({"batch_size": 0}, "TrainConfig: batch_size=0 must be at least 1."),
    ({"learning_rate": 0.0}, "TrainConfig: learning_rate=0.0 must be above 0 (AdamW: 1e-4 to 5e-3)."),
    ({"learning_rate": math.nan}, "TrainConfig: learning_rate=nan must be finite."),
    ({"learning_rate": "1e-3"}, "TrainConfig: learning_rate='1e-3' must be a number."),
    ({"min_learning_rate": -1e-4}, "TrainConfig: min_learning_rate=-0.0001 must be at least 0."),
    (
        {"learning_rate": 1e-3, "min_learning_rate": 2e-3},
        "min_learning_rate=0.002 is above learning_rate=0.001.",
    ),
    ({"warmup_steps": -1}, "TrainConfig: warmup_steps=-1 must be at least 0."),
    ({"max_steps": 5, "warmup_steps": 6}, "TrainConfig: warmup_steps=6 is more than max_steps=5."),
    ({"betas": (0.9, 1.0)}, "TrainConfig: betas=(0.9, 1.0) must be two numbers in [0, 1)."),
    ({"betas": (0.9,)}, "TrainConfig: betas=(0.9,) must be two numbers in [0, 1)."),
    ({"betas": 0.9}, "TrainConfig: betas=0.9 must be two numbers in [0, 1)."),
    ({"betas": ("a", "b")}, "TrainConfig: betas=('a', 'b') must be two numbers in [0, 1)."),
    ({"weight_decay": -0.1}, "TrainConfig: weight_decay=-0.1 must be at least 0."),
    ({"grad_clip": -1.0}, "TrainConfig: grad_clip=-1.0 must be at least 0."),
    ({"eval_every": -1}, "TrainConfig: eval_every=-1 must be at least 0."),
    ({"eval_windows": 0}, "TrainConfig: eval_windows=0 must be at least 1."),
    ({"sample_every": -5}, "TrainConfig: sample_every=-5 must be at least 0."),
    ({"sample_tokens": 0}, "TrainConfig: sample_tokens=0 must be at least 1."),
    ({"checkpoint_every": -1}, "TrainConfig: checkpoint_every=-1 must be at least 0."),
    ({"threads": 0}, "TrainConfig: threads=0 must be at least 1."),
    ({"seed": -1}, "TrainConfig: seed=-1 must be at least 0."),
]

BAD_SAMPLINGS: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "SampleConfig: max_new_tokens=0 must be at least 1."),
    ({"max_new_tokens": 2.5}, "SampleConfig: max_new_tokens=2.5 must be a whole number."),
    ({"temperature": -0.5}, "SampleConfig: temperature=-0.5 must be at least 0."),
    ({"temperature": math.nan}, "SampleConfig: temperature=nan must be finite."),
    ({"temperature": None}, "SampleConfig: temperature=None must be a number."),
    ({"top_k": 0}, "SampleConfig: top_k=0 must be at least 1."),
    ({"top_k": 1.5}, "SampleConfig: top_k=1.5 must be a whole number."),
    ({"top_p": 0.0}, "SampleConfig: top_p=0.0 must be in (0, 1]; 1 keeps everything."),
    ({"temperature": math.inf}, "SampleConfig: temperature=inf must be finite."),
    ({"top_p": 1.01}, "SampleConfig: top_p=1.01 must be in (0, 1]; 1 keeps everything."),
    ({"top_p": -0.2}, "SampleConfig: top_p=-0.2 must be in (0, 1]; 1 keeps everything."),
    ({"top_p": math.nan}, "SampleConfig: top_p=nan must be finite."),
    ({"min_p": -0.1}, "SampleConfig: min_p=-0.1 must be in [0, 1]; 0 keeps everything."),
    ({"min_p": 1.1}, "SampleConfig: min_p=1.1 must be in [0, 1]; 0 keeps everything."),
    ({"min_p": math.nan}, "SampleConfig: min_p=nan must be finite."),
    ({"repetition_penalty": 0}, "repetition_penalty=0 must be above 0; 1 changes nothing."),
    ({"repetition_penalty": -1.5}, "repetition_penalty=-1.5 must be above 0; 1 changes nothing."),
    ({"repetition_penalty": math.nan}, "SampleConfig: repetition_penalty=nan must be finite."),
    ({"repetition_penalty": None}, "SampleConfig: repetition_penalty=None must be a number."),
    ({"stop": ("x", "")}, "SampleConfig: stop: '' must be a text that is not empty."),
    ({"stop": [7]}, "SampleConfig: stop: 7 must be a text that is not empty."),
    ({"stop": "the end"}, "SampleConfig: stop='the end' must be a list of texts."),
    ({"n": 0}, "SampleConfig: n=0 must be at least 1."),
    ({"n": 2.0}, "SampleConfig: n=2.0 must be a whole number."),
    ({"eos_id": -1}, "SampleConfig: eos_id=-1 must be at least 0."),
]


@pytest.mark.parametrize(
    ("kind", "base", "bad", "message"),
    [
        *((GPTConfig, ODD_MODEL, *row) for row in BAD_MODELS),
        *((TrainConfig, {}, *row) for row in BAD_TRAININGS),
        *((SampleConfig, {}, *row) for row in BAD_SAMPLINGS),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) and value is not ODD_MODEL else None,
)
def test_bad_settings_are_refused_with_field_value_and_rule(
    kind: Any, base: dict[str, Any], bad: dict[str, Any], message: str
) -> None:
    kind(**base)  # what surrounds the bad value is fine
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        kind(**base | bad)
    assert str(error.value).startswith(f"{kind.__name__}: ")


def test_whole_numbers_are_accepted_where_a_float_is_meant() -> None:
    assert TrainConfig(learning_rate=1, min_learning_rate=0).learning_rate == 1
    assert SampleConfig(temperature=0, top_p=1).top_p == 1
    assert SampleConfig(min_p=0, repetition_penalty=2).min_p == 0


def test_stop_strings_may_be_a_list_and_are_kept_as_a_tuple() -> None:
    assert SampleConfig(stop=["a", "b"]) == SampleConfig(stop=("a", "b"))  # type: ignore[arg-type]
    assert hash(SampleConfig(stop=["a"])) == hash(SampleConfig(stop=("a",)))  # type: ignore[arg-type]


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"GPTConfig.preset: 'gpt5' is not known. Choose from char-mini, "):
        GPTConfig.preset("gpt5")


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_every_preset_builds(name: str) -> None:
    config = GPTConfig.preset(name)
    with torch.device("meta"):
        model = GPT(config)
        logits = model(torch.zeros(1, 3, dtype=torch.long))
    assert logits.shape == (1, 3, config.vocab_size)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("smollm2-135m", 134_515_008),
        # nano by hand: two 50257 x 256 tables, 256 positions, 6 blocks of 12 d^2 + 13 d, the last norm
        ("nano", 2 * 50257 * 256 + 256 * 256 + 6 * (12 * 256**2 + 13 * 256) + 2 * 256),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig.preset(name))
    assert model.num_parameters() == parameters


def test_nano_has_30_and_a_half_million_parameters() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig.preset("nano"))
    assert round(model.num_parameters() / 1e6, 1) == 30.5


def test_an_overridden_preset_changes_that_field_alone() -> None:
    full, short = GPTConfig.preset("gpt2"), GPTConfig.preset("gpt2", n_layers=5)
    assert short == dataclasses.replace(full, n_layers=5)
    with torch.device("meta"):
        removed = GPT(full).num_parameters() - GPT(short).num_parameters()
    assert removed == 7 * (12 * 768**2 + 13 * 768)
    assert MODEL_PRESETS["gpt2"]["n_layers"] == 12  # the table itself is untouched


def test_every_recipe_builds_and_an_override_changes_that_field_alone() -> None:
    for name, values in TRAIN_PRESETS.items():
        full, short = TrainConfig.preset(name), TrainConfig.preset(name, max_steps=321)
        assert short == dataclasses.replace(full, max_steps=321)
        assert {field: getattr(full, field) for field in values} == values
        assert values["max_steps"] != 321


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    message = "TrainConfig.preset: 'quick' is not known. Choose from reference, fast."
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig.preset("quick")


def test_the_fast_recipe_sees_less_than_a_third_of_the_text_of_the_reference() -> None:
    seen = {
        name: recipe.max_steps * recipe.batch_size
        for name in TRAIN_PRESETS
        if (recipe := TrainConfig.preset(name)).max_steps
    }
    assert seen["fast"] < seen["reference"] / 3


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig(**ODD_MODEL),
        TrainConfig(epochs=0.5),
        SampleConfig(top_k=3, min_p=0.1, repetition_penalty=1.2, stop=("\n\n", "é"), n=4),
    ],
)
def test_a_configuration_survives_json(config: Any) -> None:
    restored = type(config)(**json.loads(json.dumps(as_dict(config))))
    assert restored == config


def test_configurations_cannot_be_changed_after_the_check() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig(**ODD_MODEL).n_heads = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("config", "tokens", "steps"),
    [
        (TrainConfig(), 10_000, 1000),
        (TrainConfig(max_steps=17), 10_000, 17),
        (TrainConfig(epochs=1, batch_size=3), 210, 10),  # 210 / (3 * 7)
        (TrainConfig(epochs=1, batch_size=3), 211, 11),  # the rest needs a step too
        (TrainConfig(epochs=2.5, batch_size=3), 210, 25),
        (TrainConfig(epochs=0.001, batch_size=3), 210, 1),
    ],
)
def test_steps_follow_from_epochs(config: TrainConfig, tokens: int, steps: int) -> None:
    assert config.total_steps(tokens, context_length=7) == steps
