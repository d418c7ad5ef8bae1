"""The shipped model: small, whole, what its card says, and made by the recipe in scripts/."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from labkit.analysis import evaluate_loss
from labkit.config import DataConfig, GPTConfig, TrainConfig, as_dict
from labkit.model import GPT
from labkit.text import Corpus, WindowDataset, load_corpus, train_bpe
from labkit.weights import PRETRAINED, load_pretrained
from labstudio.runs import kept_runs

ROOT = Path(__file__).parents[2]
CONFIG = json.loads((PRETRAINED / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plays() -> Corpus:
    return load_corpus("shakespeare")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_checkpoint  # type: ignore[import-not-found]

    return make_checkpoint


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PRETRAINED, tmp_path / "pretrained"))


def edit_config(folder: Path, section: str, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config[section] |= changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_it_is_small_and_holds_data_only() -> None:
    files = {path.name: path.stat().st_size for path in PRETRAINED.iterdir()}
    assert files.keys() == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert files["model.safetensors"] == CONFIG["weights"]["bytes"] <= 8_000_000
    assert sum(files.values()) < 8_200_000


def test_every_tensor_is_stored_once_in_half_precision() -> None:
    stored = load_file(PRETRAINED / "model.safetensors")
    expected = {name: tensor.shape for name, tensor in GPT(GPTConfig(**CONFIG["model"])).named_parameters()}
    assert {name: tensor.shape for name, tensor in stored.items()} == expected
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in stored.values()) == CONFIG["weights"]["parameters"]


def test_it_loads_without_network_or_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("load_pretrained must not do this")

    for owner, name in ((socket, "socket"), (torch, "load"), (sys.modules["pickle"], "Unpickler")):
        monkeypatch.setattr(owner, name, refuse)
    model, tokenizer = load_pretrained()
    stored = load_file(PRETRAINED / "model.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name].float()), name
    assert model.head.weight is model.token_embedding.weight
    assert not model.training
    assert tokenizer.vocab_size == model.config.vocab_size
    assert tokenizer.fingerprint == CONFIG["tokenizer"]["fingerprint"]


def test_loading_leaves_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_pretrained()
    assert torch.equal(torch.rand(3), expected)


def test_it_has_gpt2s_architecture() -> None:
    config = GPTConfig(**CONFIG["model"])
    changed = {"context_length", "d_model", "n_layers", "n_heads", "vocab_size", "activation", "dropout"}
    theirs = as_dict(GPTConfig.preset("gpt2"))
    assert {name for name, value in as_dict(config).items() if value != theirs[name]} <= changed
    assert config.activation in ("gelu", "gelu_tanh")


def test_held_out_loss_is_the_one_on_record(plays: Corpus) -> None:
    model, tokenizer = load_pretrained()
    ids = plays.encode(tokenizer, "val")
    windows = WindowDataset(ids, model.config.context_length)
    loss = evaluate_loss(model, *next(windows.batches(CONFIG["slice"]["windows"])))
    assert loss == pytest.approx(CONFIG["slice"]["loss"], abs=1e-3)


def test_the_corpus_is_the_one_it_was_trained_on(plays: Corpus) -> None:
    tokenizer = load_pretrained()[1]
    assert CONFIG["data"]["fingerprint"] == plays.fingerprint
    assert CONFIG["data"]["val"] == [document.title for document in plays.val]
    assert CONFIG["data"]["test"] == [document.title for document in plays.test]
    assert CONFIG["data"]["train_tokens"] == len(plays.encode(tokenizer, "train"))
    assert train_bpe(plays.text("train"), 4096, progress=False).fingerprint == tokenizer.fingerprint


def test_the_recipe_is_the_scripts(script: Any) -> None:
    recorded = json.loads((kept_runs() / "pretrained" / "config.json").read_text(encoding="utf-8"))
    for train, model in (
        (CONFIG["recipe"], CONFIG["model"]),
        (recorded["train"], recorded["model"]),
    ):
        assert TrainConfig(**train) == script.TRAIN
        assert GPTConfig(**model) == GPTConfig.preset(script.PRESET, vocab_size=4096, **script.SHAPE)
    assert DataConfig(**recorded["source"]["data"]) == script.DATA
    assert CONFIG["data"]["corpus"] == script.DATA.corpus


def test_the_kept_metrics_are_those_of_the_run(script: Any) -> None:
    lines = (kept_runs() / "pretrained" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows if row["event"] == "step"]
    assert steps == list(range(1, CONFIG["training"]["steps"] + 1))
    assert CONFIG["training"]["steps"] == script.TRAIN.max_steps
    last = [row["loss"] for row in rows if row["event"] == "step"][-script.SMOOTH :]
    assert CONFIG["training"]["train_loss"] == pytest.approx(sum(last) / len(last), abs=1e-4)


def test_the_card_says_what_config_says() -> None:
    text = (PRETRAINED / "README.md").read_text(encoding="utf-8")
    for name, split in (("validation", "val"), ("test", "test")):
        row = re.search(rf"^\| {name} \|(.+)\|$", text, re.MULTILINE)
        assert row
        loss, perplexity, bits, tokens = (float(cell.strip().replace(",", "")) for cell in row[1].split("|"))
        result = CONFIG["results"][split]
        assert (loss, bits, tokens) == (result["loss"], result["bits_per_byte"], result["tokens"])
        assert perplexity == pytest.approx(result["perplexity"], abs=0.05)
    assert CONFIG["data"]["train_sha256"] in text
    assert f"{CONFIG['training']['steps']:,} steps" in text
    assert text.count("```text\n") == 10


def test_a_sample_of_the_card_can_be_written_again(script: Any) -> None:
    text = (PRETRAINED / "README.md").read_text(encoding="utf-8")
    prompts = script.PROMPTS[:1]
    script_samples = script.write_samples(*load_pretrained(), prompts)
    assert f"```text\n{script_samples[0]}\n```" in text


def test_what_it_writes_is_mostly_words_of_the_plays(script: Any, plays: Corpus) -> None:
    text = "".join(script.write_samples(*load_pretrained(), ("ROMEO.\n",)))
    words = re.findall(r"[a-z]+", text.lower())
    known = set(re.findall(r"[a-z]+", plays.text("all").lower()))
    assert len(words) > 50
    assert sum(word in known for word in words) / len(words) > 0.9


def test_a_file_cut_short_is_named(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: .* is cut short or was changed.*make"):
        load_pretrained(copy)


def test_one_flipped_bit_is_seen(copy: Path) -> None:
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is cut short or was changed"):
        load_pretrained(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: cannot be read \(No such file"):
        load_pretrained(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {}, "weights": []}'])
def test_a_damaged_config_is_named(text: str, copy: Path) -> None:
    (copy / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"config\.json: (is incomplete or damaged|is no JSON text|holds a list)"
    ):
        load_pretrained(copy)


def test_another_tokenizer_is_refused(copy: Path) -> None:
    train_bpe("the tide tells the time " * 3, 260, progress=False).save(copy / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json: is another tokenizer"):
        load_pretrained(copy)


@pytest.mark.parametrize("change", [{"d_model": 48}, {"n_layers": 2}, {"bias": False}, {"d_modle": 3}])
def test_a_shape_that_is_not_the_weights_is_refused(change: dict[str, Any], copy: Path) -> None:
    edit_config(copy, "model", **change)
    message = "does not fit|is not the model that its configuration describes|describes a model that cannot"
    with pytest.raises(ValueError, match=message):
        load_pretrained(copy)


def test_labkit_sample_without_a_run_writes(capsys: pytest.CaptureFixture[str]) -> None:
    from labstudio.cli import main

    shown = []
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(["sample", "--prompt", "HAMLET.\n", "--max-new-tokens", "15"])
        assert end.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[0].startswith("HAMLET.\n")
    assert len(shown[0]) > 20


def test_labkit_sample_says_which_model_writes(capsys: pytest.CaptureFixture[str]) -> None:
    from labstudio.cli import main

    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    assert "labkit's own model" in " ".join(re.sub("│", " ", capsys.readouterr().out).split())


def test_the_recipe_runs_stops_and_goes_on(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps of a narrow model on a short text; the second call finds the run finished."""
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    monkeypatch.setattr(script, "DATA", DataConfig(corpus="tiny"))
    monkeypatch.setattr(script, "SHAPE", script.SHAPE | {"d_model": 12, "n_layers": 1, "n_heads": 2})
    monkeypatch.setattr(script, "PROMPTS", ("\n", "The lamp"))
    for _ in range(2):
        assert script.main(["--steps", "2", "--out", str(tmp_path / "out")]) == 0
        model, tokenizer = load_pretrained(tmp_path / "out")
        assert model.config.d_model == 12
        stored = load_file(tmp_path / "out" / "model.safetensors")
        assert stored.keys() == dict(model.named_parameters()).keys()  # a tied head once
        assert tokenizer.vocab_size == model.config.vocab_size < 100
    assert "goes on from step 2 of 2" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert written["training"]["steps"] == 2
    corpus = load_corpus("tiny")
    assert written["results"]["val"]["tokens"] == len(corpus.encode(tokenizer, "val")) - 1
    assert written["data"]["fingerprint"] == corpus.fingerprint
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")


def test_a_short_try_cannot_replace_the_shipped_model(script: Any) -> None:
    with pytest.raises(SystemExit) as end:
        script.main(["--steps", "2"])
    assert end.value.code == 2
