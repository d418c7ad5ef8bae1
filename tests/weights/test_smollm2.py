"""SmolLM2-135M, offline: what transformers computes with the same weights, and an answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import torch
from llama_files import GGUF_NAMES, greedy, logits
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from labkit import GPTConfig, SampleConfig
from labkit.generation import generate
from labkit.text import asset_path, encode_chat, load_corpus
from labkit.weights.llama import load_llama
from labkit.weights.mapping import LoadedModel
from labstudio.cli import main


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which SmolLM2 was never loaded."""
    folder = tmp_path_factory.mktemp("cache")
    for part in ("smollm2", "shakespeare"):
        (folder / part).symlink_to(asset_path(part))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_CACHE", str(folder))
        yield folder
    shutil.rmtree(folder)  # 0.54 GB


@pytest.fixture(scope="module")
def smollm2(cache: Path) -> LoadedModel:
    return load_llama("smollm2")


@pytest.fixture(scope="module")
def theirs() -> LlamaForCausalLM:
    """The model of transformers with the weights of the GGUF file, read by the package gguf alone."""
    (file,) = asset_path("smollm2").glob("*.gguf")
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    names = {gguf_name: name for name, gguf_name in GGUF_NAMES.items()}
    weights = {}
    for tensor in gguf.GGUFReader(file).tensors:
        *layer, part, leaf = tensor.name.split(".")
        before = f"model.layers.{layer[1]}." if layer else ""
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if part in ("attn_q", "attn_k"):  # pairs (0, 1), (2, 3), … become (0, 32), (1, 33), …
            values = values.reshape(-1, 32, 2, 576).swapaxes(1, 2).reshape(-1, 576)
        weights[f"{before}{names[part]}.{leaf}"] = torch.tensor(values)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model.eval()


def test_its_shape_is_the_preset(smollm2: LoadedModel) -> None:
    assert smollm2.model.config == GPTConfig.preset("smollm2-135m")
    assert smollm2.model.num_parameters() == 134_515_008


def test_its_logits_are_those_of_transformers(smollm2: LoadedModel, theirs: LlamaForCausalLM) -> None:
    model, tokenizer, _ = smollm2
    assert tokenizer is not None
    play = load_corpus("shakespeare").test[0].text
    ids = torch.tensor(tokenizer.encode(play)[1000:1514])[None]
    with torch.inference_mode():
        ours = model(ids)
    expected = logits(theirs, ids)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)
    assert ours.shape == (1, 514, 49152)
    assert expected.std() > 1


def test_its_greedy_text_is_that_of_transformers(smollm2: LoadedModel, theirs: LlamaForCausalLM) -> None:
    model, tokenizer, _ = smollm2
    assert tokenizer is not None
    ids = torch.tensor(tokenizer.encode("The three most important inventions of the 19th century were"))
    ours = generate(model, ids, SampleConfig(max_new_tokens=50, temperature=0.0))
    assert ours.tolist() == greedy(theirs, ids[None])[0].tolist()


def test_it_answers_a_question(smollm2: LoadedModel) -> None:
    model, tokenizer, _ = smollm2
    assert tokenizer is not None
    ids = encode_chat(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    settings = SampleConfig(max_new_tokens=30, temperature=0.0, eos_id=tokenizer.eos_id)
    answer = tokenizer.decode(generate(model, torch.tensor(ids), settings)[len(ids) :].tolist())
    assert "Paris" in answer
    assert "\n" not in answer  # it stops after its sentence


def test_the_unpacked_folder_is_one_that_transformers_loads(smollm2: LoadedModel, cache: Path) -> None:
    folder = cache / "smollm2-135m-instruct"
    theirs = AutoTokenizer.from_pretrained(folder)
    assert smollm2.tokenizer is not None
    text = "In 1859, naïve\t readers  paid £12."
    assert theirs(text)["input_ids"] == smollm2.tokenizer.encode(text)
    loaded, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert torch.equal(loaded.model.embed_tokens.weight, smollm2.model.token_embedding.weight)


def test_it_is_unpacked_once(smollm2: LoadedModel, cache: Path) -> None:
    weights = cache / "smollm2-135m-instruct" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    load_llama("smollm2")
    assert weights.stat().st_mtime_ns == before
    assert not list(cache.glob("*.new*"))


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut short", "another asset", "no tokenizer"])
def test_a_damaged_or_outdated_folder_is_unpacked_anew(
    cache: Path, smollm2: LoadedModel, damage: str
) -> None:
    folder, made_from = cache / "smollm2-135m-instruct", cache / "smollm2-135m-instruct.source"
    if damage == "cut short":  # a new file, since the loaded model lies in the old one
        content = (folder / "model.safetensors").read_bytes()[:1_000_000]
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(content)
    elif damage == "another asset":
        made_from.write_text("0" * 64)
    else:
        (folder / "tokenizer.json").unlink()
    again = load_llama("smollm2")
    assert again.tokenizer is not None
    assert (folder / "model.safetensors").stat().st_size > 500_000_000
    assert len(made_from.read_text()) == 64
    assert made_from.read_text() != "0" * 64


@pytest.mark.long
def test_processes_that_load_it_first_at_the_same_time_do_no_harm(cache: Path, smollm2: LoadedModel) -> None:
    (cache / "smollm2-135m-instruct.source").unlink()
    program = (
        "from labkit.weights.llama import load_llama\n"
        "print(float(load_llama('smollm2').model.norm.weight.sum()))\n"
    )
    loading = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    expected = f"{float(smollm2.model.norm.weight.sum())}\n"
    assert [process.communicate(timeout=200)[0] for process in loading] == [expected] * 2


def test_it_answers_on_the_command_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = ["--prompt", "What is the capital of France?", "--temperature", "0"]
    with pytest.raises(SystemExit) as end:
        main(["sample", "smollm2", "--chat", *question])
    assert not end.value.code
    assert capsys.readouterr().out == "The capital of France is Paris.\n"


def test_fetching_it_unpacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2").symlink_to(asset_path("smollm2"))
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(["fetch", "smollm2"])
        assert not end.value.code
        unpacked = (tmp_path / "smollm2-135m-instruct" / "model.safetensors").stat()
    assert unpacked.st_mtime_ns < (tmp_path / "smollm2-135m-instruct.source").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "smollm2-135m-instruct")  # 0.54 GB
