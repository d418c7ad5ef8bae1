"""`labkit import` and `labkit export`, and which models the commands open."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2_files import SIZES, write
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit import GPT, GPTConfig
from labkit.text import CharTokenizer
from labkit.training import Run
from labkit.weights import load_gpt2, load_model, load_pretrained, save_llama
from labstudio.cli import main

pytest_plugins = ["sample_command"]


@pytest.fixture
def command(
    trained_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Calls labkit in a copy of the folder that holds the run named first."""
    shutil.copytree(trained_home, tmp_path / "home")
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path / "home"))

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(words))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_the_shipped_model_goes_out_and_comes_back_as_a_run(command: Any, tmp_path: Path) -> None:
    code, out, _ = command("export", "shipped", str(tmp_path / "gpt2"))
    assert code == 0
    read_back = re.search(r"3,451,136 parameters in the layout of GPT-2\nRead back: .* at most (\S+)", out)
    assert read_back
    assert float(read_back[1]) < 1e-4  # views of the file sum in another order on some processors
    code, out, _ = command("import", str(tmp_path / "gpt2"), "--name", "mine", "--table")
    assert code == 0
    assert "h.2.attn.c_attn.weight blocks.2.attention.value.weight" in " ".join(out.split())
    assert "run mine: 3,451,136 parameters, 4,096 kinds of token; 52 parameters loaded" in out
    imported, tokenizer = Run.open("mine").load()
    shipped, expected = load_pretrained()
    for name, tensor in shipped.state_dict().items():
        assert torch.equal(imported.state_dict()[name], tensor), name
    assert tokenizer.encode("All the world's a stage") == expected.encode("All the world's a stage")
    writes = ("--prompt", "ROMEO.", "--max-new-tokens", "9", "--seed", "3")
    texts = {command("sample", *source, *writes)[1] for source in ([], ["mine"], [str(tmp_path / "gpt2")])}
    assert len(texts) == 1
    assert command("runs")[1].count("mine") == 1


def test_a_run_of_characters_works_in_transformers(command: Any, tmp_path: Path) -> None:
    assert command("export", "first", str(tmp_path / "out"))[0] == 0
    model, tokenizer = Run.open("first").load()
    text = "The lamp"
    encoder = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert encoder(text)["input_ids"] == tokenizer.encode(text)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([tokenizer.encode(text)[:7], tokenizer.encode(text)[1:8]])
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-4)


def test_a_training_begins_from_an_imported_model(command: Any, tmp_path: Path) -> None:
    sizes = ["--context-length", "7", "--d-model", "10", "--n-layers", "1", "--n-heads", "2"]
    steps = ["--max-steps", "1", "--eval-windows", "3", "--learning-rate", "1e-9", "--weight-decay", "0"]
    command("export", "first", str(tmp_path / "out"))
    command("import", str(tmp_path / "out"), "--name", "start")
    assert (
        command("train", "--corpus", "tiny", "--init-from", "start", "--name", "on", *steps, *sizes)[0] == 0
    )
    for name, tensor in Run.open("first").load()[0].state_dict().items():
        torch.testing.assert_close(Run.open("on").load()[0].state_dict()[name], tensor, rtol=0, atol=1e-7)


def test_a_model_of_the_llama_kind_goes_out_in_its_layout(command: Any, tmp_path: Path) -> None:
    config = GPTConfig(
        vocab_size=5, context_length=9, d_model=12, n_layers=2, n_heads=3, n_kv_heads=1, qkv_bias=False,
        bias=False, positions="rotary", norm="rmsnorm", activation="swiglu", d_ff=17,
    )  # fmt: skip
    save_llama(GPT(config), tmp_path / "llama", CharTokenizer("abcd"))
    assert load_model(tmp_path / "llama").model.config.positions == "rotary"
    code, out, _ = command("export", str(tmp_path / "llama"), str(tmp_path / "again"))
    assert (code, "in the layout of Llama" in out) == (0, True)
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("llama", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_one_door_knows_every_kind_of_folder(tmp_path: Path) -> None:
    shipped, tokenizer, report = load_model("shipped")
    assert (shipped.num_parameters(), tokenizer is not None) == (3_451_136, True)
    assert [row.parameter for row in report.assigned] == [name for name, _ in shipped.named_parameters()]
    weights = load_gpt2(_without_tokenizer(tmp_path)).model
    assert load_model(tmp_path / "plain").model.config == weights.config
    assert load_model(tmp_path / "plain" / "model.safetensors").tokenizer is None


def test_the_model_of_a_checkpoint_comes_with_the_tokenizer_of_its_run(command: Any) -> None:
    run = Run.open("first")
    model, tokenizer = run.load()
    folder = run.checkpoints()[-1].path
    loaded = load_model(folder)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    for (name, ours), each in zip(model.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(ours, each), name
    assert {row.operation for row in loaded.report.assigned} == {"as it is"}
    assert not loaded.model.training
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"is cut short or was changed\. Take an older checkpoint"):
        load_model(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        load_model(folder)


def _without_tokenizer(tmp_path: Path) -> Path:
    write("no prefix", SIZES[0], tmp_path / "plain")
    return tmp_path / "plain"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "no-such-model"], "'no-such-model' is not a published model's name. Choose from gpt2,"),
        (["import", "PLAIN"], "has no tokenizer that labkit reads"),
        (["sample", "PLAIN"], "has no tokenizer that labkit reads"),
        (["sample", "no-such-run"], "There is no run 'no-such-run'. Runs: first"),
        (["export", "no-such-run", "OUT"], "There is no run 'no-such-run'. Runs: first"),
        (["export", "shipped", "PLAIN/config.json"], "holds a file. Choose a new or empty folder"),
        (["export", "shipped", "OTHER"], "holds thesis.txt. Choose a new or empty folder"),
        (["import", "DAMAGED"], "is no whole safetensors file"),
        (["import", "PLAIN", "--name", "a/b"], "must be a plain folder name"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    command: Any, tmp_path: Path, words: list[str], message: str
) -> None:
    plain = _without_tokenizer(tmp_path)
    if "a/b" in words:
        CharTokenizer("".join(map(chr, range(65, 101)))).save(plain / "tokenizer.json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.safetensors").write_bytes(b"not weights")
    places = {
        "PLAIN": plain,
        "OUT": tmp_path / "out",
        "OTHER": damaged.with_name("other"),
        "DAMAGED": damaged,
    }
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    before = {run.name for run in Run.open("first").path.parent.iterdir()}
    code, _, err = command(*words)
    assert (code, message in err) == (2, True), err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert {run.name for run in Run.open("first").path.parent.iterdir()} == before
