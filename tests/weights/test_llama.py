"""Llama models, from folders and GGUF files, compute what transformers computes with them; and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from llama_files import CONTEXT, FOLDERS, GGUFS, SIZES, greedy, logits, reference, write_folder, write_gguf
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import generate
from labkit.text import CharTokenizer, train_bpe
from labkit.weights.formats.gguf import read_gguf
from labkit.weights.llama import load_llama, save_llama

EXACT = {"rtol": 0, "atol": 1e-4}


def some_ids(sizes: dict[str, Any], batch: int = 3, seq: int = 13) -> Tensor:
    return torch.randint(sizes["vocab_size"], (batch, seq), generator=torch.Generator().manual_seed(1))


def check_parity(ours: GPT, theirs: LlamaForCausalLM, sizes: dict[str, Any]) -> None:
    """Logits over the whole context, and 50 tokens of greedy text."""
    assert all(each.dtype == torch.float32 for each in ours.parameters())
    ids = some_ids(sizes, batch=2, seq=CONTEXT)
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), logits(theirs, ids), **EXACT)
    prompt = some_ids(sizes)
    settings = SampleConfig(max_new_tokens=50, temperature=0.0)
    continued = torch.stack(generate(ours, list(prompt), settings))
    assert continued.shape == (3, 63)
    assert continued.tolist() == greedy(theirs, prompt).tolist()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("form", FOLDERS)
def test_a_published_folder_computes_what_transformers_computes(
    tmp_path: Path, form: str, sizes: dict[str, Any]
) -> None:
    theirs = write_folder(form, sizes, tmp_path / "model")
    if theirs is None:
        return
    ours = load_llama(tmp_path / "model").model
    assert ours.config.tie_weights == sizes["tie_word_embeddings"]
    check_parity(ours, theirs, sizes)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("packing", GGUFS)
def test_a_gguf_file_computes_what_transformers_computes(
    tmp_path: Path, packing: str, sizes: dict[str, Any]
) -> None:
    theirs = write_gguf(packing, sizes, tmp_path / "model.gguf")
    packings = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    blocks = packing not in ("Q8_0", "Q4_1") or sizes["hidden_size"] == 96
    assert packings == ({"F32", packing} if blocks else packings)
    ours = load_llama(tmp_path / "model.gguf").model
    assert ours.config.norm_eps == sizes["rms_norm_eps"]
    check_parity(ours, theirs, sizes)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_saved_model_computes_the_same_in_transformers(tmp_path: Path, sizes: dict[str, Any]) -> None:
    write_folder("safetensors", sizes, tmp_path / "theirs")
    ours = load_llama(tmp_path / "theirs").model
    assert save_llama(ours, tmp_path / "ours") == tmp_path / "ours"
    theirs, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert isinstance(theirs, LlamaForCausalLM)
    assert not any(loading[wrong] for wrong in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_parity(ours, theirs.eval(), sizes)
    again = load_llama(tmp_path / "ours").model
    assert again.config == ours.config
    for (name, before), after in zip(ours.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after), name


@pytest.mark.parametrize(("qkv_bias", "bias"), [(True, False), (False, True)])
def test_biases_of_some_layers_only_are_saved_with_zeros(tmp_path: Path, qkv_bias: bool, bias: bool) -> None:
    config = GPTConfig.preset(
        "smollm2-135m", vocab_size=31, context_length=CONTEXT, d_model=30, n_layers=2, n_heads=3,
        n_kv_heads=1, d_ff=44, qkv_bias=qkv_bias, bias=bias,
    )  # fmt: skip
    torch.manual_seed(0)
    ours = GPT(config).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_llama(ours, tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    check_parity(ours, theirs, {"vocab_size": 31})


@pytest.mark.parametrize("make", ["char", "bpe"])
def test_the_tokenizer_goes_with_the_model(tmp_path: Path, make: str) -> None:
    text = "the cat sat on the mat, the rat sat on the cat, and that was that."
    tokenizer = CharTokenizer.from_text(text) if make == "char" else train_bpe(text, 270)
    ours = GPT(
        GPTConfig.preset("smollm2-135m", vocab_size=tokenizer.vocab_size, context_length=CONTEXT, n_layers=1)
    ).eval()
    save_llama(ours, tmp_path / "ours", tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs("the rat sat")["input_ids"] == tokenizer.encode("the rat sat")
    again = load_llama(tmp_path / "ours").tokenizer
    assert again is not None
    assert again.encode("the rat sat") == tokenizer.encode("the rat sat")


@pytest.mark.parametrize(
    "changes",
    [{"positions": "learned"}, {"norm": "layernorm"}, {"activation": "gelu"}, {"embedding_scale": True}],
)
def test_a_model_that_llama_cannot_be_is_not_saved(tmp_path: Path, changes: dict[str, Any]) -> None:
    sizes = {
        "vocab_size": 7,
        "context_length": 9,
        "d_model": 12,
        "n_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 1,
    }
    model = GPT(GPTConfig.preset("smollm2-135m", **sizes | changes))
    with pytest.raises(ValueError, match=f"save_llama: .* no {next(iter(changes))}="):
        save_llama(model, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_gguf_header_is_read_as_the_package_gguf_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("words", ["naïve", "", "a b"])
    writer.add_array("numbers", [-3, 5, 70000])
    writer.add_array("fractions", [0.5, -1.25])
    writer.add_bool("yes", True)
    writer.add_uint64("large", 2**63)
    writer.add_int8("small", -7)
    writer.add_float64("precise", 0.1)
    writer.add_custom_alignment(64)
    for name, shape in (("first", (3, 5)), ("second", (7,)), ("third", (2, 3, 4))):
        writer.add_tensor(name, torch.randn(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, tensors = read_gguf(path)
    reader = gguf.GGUFReader(path)
    expected = {name: field.contents() for name, field in reader.fields.items() if "GGUF" not in name}
    assert metadata == expected
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        assert tensors[tensor.name].unpack().tolist() == tensor.data.tolist()
        assert tensors[tensor.name].shape == tensors[tensor.name].unpack().shape


def test_the_report_says_what_was_done_to_each_tensor(tmp_path: Path) -> None:
    sizes = SIZES["three query heads share a key"]
    write_gguf("F32", sizes, tmp_path / "model.gguf")
    table = load_llama(tmp_path / "model.gguf").report.table().set_index("published")
    assert table.loc["blk.2.attn_k.weight", "operation"] == "rotary pairs taken apart"
    assert table.loc["blk.2.attn_v.weight", "operation"] == "as it is"
    assert len(table) == len(list(reference(sizes).parameters()))
