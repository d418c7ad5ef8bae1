"""Published GPT-2 weights, in every form, compute what transformers computes with them; and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2_files import FORMS, SIZES, logits, reference, write
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from labkit import GPT, GPTConfig, SampleConfig, TrainConfig, generate
from labkit.generation import complete
from labkit.text import GPT2Tokenizer
from labkit.training import build_optimizer, load_checkpoint, save_checkpoint
from labkit.weights import load_gpt2, load_pretrained, save_gpt2
from labkit.weights.gpt2 import GPT2


def greedy(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    model.generation_config.eos_token_id = None
    continued: torch.Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=50, do_sample=False, pad_token_id=0
    )
    return continued


def some_ids(sizes: dict[str, Any], batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(sizes["vocab_size"], (batch, sizes["n_positions"]), generator=generator)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes.values())))
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_transformers(tmp_path: Path, form: str, sizes: dict[str, Any]) -> None:
    written = write(form, sizes, tmp_path / "model")
    if written is None:
        return
    theirs, source = written
    ours = load_gpt2(source).model
    assert ours.config.tie_weights == (form != "another head")
    ids = some_ids(sizes)
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), logits(theirs, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["safetensors", "another head", "bfloat16"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_greedy_continuations_are_those_of_transformers(
    tmp_path: Path, form: str, sizes: dict[str, Any]
) -> None:
    sizes = sizes | {"n_positions": 60}
    written = write(form, sizes, tmp_path / "model")
    assert written is not None
    theirs, source = written
    prompt = some_ids(sizes, 2)[:, :7]
    settings = SampleConfig(max_new_tokens=50, temperature=0.0)
    ours = torch.stack(generate(load_gpt2(source).model, list(prompt), settings))
    expected = greedy(theirs, prompt)
    assert ours.shape == (2, 57)
    assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_saved_models_compute_the_same_in_transformers(
    tmp_path: Path, sizes: dict[str, Any], tied: bool
) -> None:
    reference(sizes, tied=tied).save_pretrained(tmp_path / "theirs")
    ours = load_gpt2(tmp_path / "theirs").model
    save_gpt2(ours, tmp_path / "ours")
    back, missing = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not missing["missing_keys"]
    assert not missing["unexpected_keys"]
    assert back.config.tie_word_embeddings == tied
    ids = some_ids(sizes)
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), logits(back.eval(), ids), rtol=0, atol=1e-4)
    again = load_gpt2(tmp_path / "ours").model
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_text_is_that_of_transformers(tmp_path: Path) -> None:
    sizes = SIZES[-1] | {"n_positions": 80}
    save_gpt2(
        load_gpt2(write("safetensors", sizes, tmp_path / "a")[1]).model, tmp_path / "b", GPT2Tokenizer()
    )  # type: ignore[index]
    model, tokenizer, _ = load_gpt2(tmp_path / "b")
    assert isinstance(tokenizer, GPT2Tokenizer)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "b").eval()
    encoder = AutoTokenizer.from_pretrained(tmp_path / "b")
    prompt = "To be, or not to be: 42 naïve questions\n"
    encoded = encoder(prompt, return_tensors="pt")
    expected = theirs.generate(**encoded, max_new_tokens=50, do_sample=False, pad_token_id=0)[0]
    settings = SampleConfig(max_new_tokens=50, temperature=0.0)
    assert prompt + complete(model, tokenizer, prompt, settings)[0].text == encoder.decode(expected)


def test_the_shipped_model_and_its_tokenizer_work_in_transformers(tmp_path: Path) -> None:
    model, tokenizer = load_pretrained()
    save_gpt2(model, tmp_path / "shipped", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "shipped").eval()
    encoder = AutoTokenizer.from_pretrained(tmp_path / "shipped")
    text = "ROMEO.\nBut soft, what light through yonder window breaks?\n"
    assert encoder(text)["input_ids"] == tokenizer.encode(text)
    ids = torch.tensor([tokenizer.encode(text), tokenizer.encode(text)[::-1]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), logits(theirs, ids), rtol=0, atol=1e-4)
    expected = greedy(theirs, ids[:1])
    assert (
        generate(model, ids[0], SampleConfig(max_new_tokens=50, temperature=0.0)).tolist()
        == expected[0].tolist()
    )


@pytest.mark.parametrize("biases", [{"qkv_bias": False}, {"bias": False}, {"qkv_bias": False, "bias": False}])
def test_absent_biases_are_written_as_zeros(tmp_path: Path, biases: dict[str, bool]) -> None:
    config = GPTConfig(vocab_size=23, context_length=9, d_model=12, n_layers=2, n_heads=3, **biases)
    torch.manual_seed(0)
    ours = GPT(config).eval()
    save_gpt2(ours, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.randint(23, (2, 9))
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), logits(theirs, ids), rtol=0, atol=1e-5)


def test_nothing_is_copied_and_the_masks_are_left_out(tmp_path: Path) -> None:
    _, source = write("masks", SIZES[0], tmp_path / "model")  # type: ignore[misc]
    model, _, report = load_gpt2(source)
    attention = model.blocks[1].attention
    storage = attention.query.weight.untyped_storage().data_ptr()
    assert attention.value.weight.untyped_storage().data_ptr() == storage
    assert attention.query.weight.stride() == (1, 36)
    assert model.head.weight is model.token_embedding.weight
    assert len(report.left_out) == 4
    table = report.table()
    assert list(table["parameter"]) == [name for _, ours in GPT2.rows(model) for name in ours]
    assert set(table["parameter"]) == {name for name, _ in model.named_parameters()}
    row = table[table["parameter"] == "blocks.1.attention.key.weight"].iloc[0]
    assert row["published"] == "h.1.attn.c_attn.weight"
    assert (row["published_shape"], row["shape"]) == ((12, 36), (12, 12))
    assert row["operation"] == "transposed, part 2 of 3"


def test_a_loaded_model_is_trained_rightly(tmp_path: Path) -> None:
    """Weights that are views with strides would be updated wrongly by a fused optimizer."""
    _, source = write("safetensors", SIZES[3], tmp_path / "model")  # type: ignore[misc]
    before = (source / "model.safetensors").read_bytes()
    loaded, copied = load_gpt2(source).model.train(), GPT(load_gpt2(source).model.config)
    copied.load_state_dict(loaded.state_dict())
    ids = some_ids(SIZES[3])
    for model in (loaded, copied.train()):
        optimizer = build_optimizer(model, TrainConfig(learning_rate=0.1))
        for _ in range(3):
            torch.manual_seed(2)
            optimizer.zero_grad()
            model.loss(ids[:, :-1], ids[:, 1:]).backward()
            optimizer.step()
    for name, tensor in copied.state_dict().items():
        # a key bias has a gradient of rounding noise alone, which Adam blows up to full steps
        tolerance = 1.0 if name.endswith("key.bias") else 1e-3
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=tolerance)
    save_checkpoint(tmp_path / "checkpoint", loaded, 3)
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint")[0](ids), loaded.eval()(ids))
    assert (source / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rotary"},
        {"norm": "rmsnorm"},
        {"activation": "swiglu"},
        {"n_kv_heads": 1},
        {"embedding_scale": True},
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = GPT(GPTConfig(vocab_size=7, context_length=5, d_model=8, n_layers=1, n_heads=2, **changes))
    with pytest.raises(ValueError, match=f"GPT-2's layout has no {next(iter(changes))}"):
        save_gpt2(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_saving_replaces_a_model_but_no_other_files(tmp_path: Path) -> None:
    model = GPT(GPTConfig(vocab_size=7, context_length=5, d_model=8, n_layers=1, n_heads=2))
    save_gpt2(model, tmp_path / "model")
    save_gpt2(load_gpt2(tmp_path / "model").model, tmp_path / "model")  # its own file, mapped as it is
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis\.txt"):
        save_gpt2(model, tmp_path / "model")
    assert (tmp_path / "model" / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
