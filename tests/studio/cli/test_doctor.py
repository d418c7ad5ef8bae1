"""The checklist: quiet when all is well, and for each thing that can be wrong how to fix it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F

from labkit.analysis import training_memory
from labkit.config import DataConfig, GPTConfig, TrainConfig
from labkit.model import GPT
from labkit.text import CharTokenizer, encode_folder, load_corpus
from labstudio.cli import checklist
from labstudio.cli.checklist import Check, format_table, report, run_checks

MODEL = GPTConfig(vocab_size=99, context_length=16, d_model=32, n_layers=2, n_heads=4)
TRAIN = TrainConfig(max_steps=20)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_text("\n\n".join(f"The {n}th paragraph speaks of {n * n} ships." for n in range(200)))
    return path


def found(
    name: str, text: Path, *, model: GPTConfig = MODEL, train: TrainConfig = TRAIN, out: Path | None = None,
    **data: Any,
) -> Check:  # fmt: skip
    checks = run_checks(model, train, DataConfig(**{"corpus": str(text)} | data), out or text.parent)
    return next(check for check in checks if check.name == name)


def expect(check: Check, status: str, detail: str, fix: str) -> None:
    assert (check.status, detail in check.detail, fix in check.fix) == (status, True, True), check


def test_all_is_well(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(run_checks(MODEL, TRAIN, DataConfig(corpus=str(text)), out=text.parent)) == 0
    printed = capsys.readouterr().out
    assert "0 would fail, 0 to look at" in printed
    assert all(name in printed for name in checklist.CHECKS)


def test_a_failure_makes_exit_code_1(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = dataclasses.replace(TRAIN, learning_rate=0.5)
    assert report(run_checks(MODEL, bad, DataConfig(corpus=str(text)), out=text.parent)) == 1
    assert "-> Usual are 1e-4" in capsys.readouterr().out


def test_the_table_puts_the_fix_below_the_finding() -> None:
    table = format_table([Check("Python", "ok", "3.13"), Check("disk", "fail", "full", "Free some space.")])
    assert table.splitlines() == [
        "ok    Python  3.13",
        "fail  disk    full",
        "              -> Free some space.",
        "",
        "2 checks: 1 would fail, 0 to look at.",
    ]


def test_missing_and_old_packages(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "tyro":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "pooch" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = found("packages", text)
    expect(check, "fail", "tyro is missing, needed is >=1.0", "pip install -r requirements.txt")
    assert "pooch is 0.1" in check.detail


def test_disk_full(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    expect(found("disk", text), "fail", "0.0 GiB free", "Free some space")


@pytest.mark.parametrize(
    ("content", "detail"), [(None, "own.txt"), (b"", "own.txt"), (b"good \xff bad", "own.txt")]
)
def test_text_that_does_not_load(content: bytes | None, detail: str, text: Path) -> None:
    text.unlink() if content is None else text.write_bytes(content)
    expect(found("text", text), "fail", detail, "Name a known corpus")
    expect(found("windows", text), "warn", "not checked", "")


def test_tokenizer_that_loses_text(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CharTokenizer, "decode", lambda *_: "something else")
    expect(found("tokenizer", text), "fail", "decode(encode(text))", "labkit fetch")


def test_text_too_short_for_the_context(text: Path) -> None:
    model = dataclasses.replace(MODEL, context_length=100_000)
    expect(found("windows", text, model=model), "fail", "shorter than one window", "context_length below")


def test_windows_are_counted(text: Path) -> None:
    for stride in (1, 7, 16):
        check = found("windows", text, stride=stride)
        corpus = load_corpus(str(text))
        tokens = len(corpus.encode(CharTokenizer.from_text(text.read_text()), "train"))
        windows = len(torch.arange(tokens - 1).unfold(0, 16, stride))
        assert f"stride {stride}: {windows:,} windows" in check.detail


def test_a_stride_that_skips_text(text: Path) -> None:
    expect(found("windows", text, stride=40), "warn", "24 tokens skipped", "stride of at most 16")


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_a_folder_of_encoded_ids_is_checked_like_text(tokenizer: str, text: Path) -> None:
    folder = text.with_name("ids")
    encode_folder(text, folder, tokenizer, workers=1)
    checks = run_checks(MODEL, TRAIN, DataConfig(corpus=str(folder)), out=text.parent)
    assert [check.name for check in checks if check.status == "fail"] == []
    assert f"{folder}: " in next(check.detail for check in checks if check.name == "text")
    assert "windows to train on" in next(check.detail for check in checks if check.name == "windows")


def test_prepared_sequences_are_checked_like_text(text: Path) -> None:
    path = text.with_suffix(".pt")
    torch.save([torch.arange(40) for _ in range(30)], path)
    model = dataclasses.replace(MODEL, context_length=39)
    checks = run_checks(model, TRAIN, DataConfig(sequences=str(path)), out=text.parent)
    assert [check.name for check in checks if check.status == "fail"] == []
    assert "27 windows to train on, 3 held out" in next(c.detail for c in checks if c.name == "windows")


def test_a_damaged_folder_of_ids_is_named(text: Path) -> None:
    folder = text.with_name("ids")
    encode_folder(text, folder, "char", workers=1)
    (folder / "tokenizer.json").write_text("{}")
    expect(found("text", folder), "fail", "tokenizer.json", "labkit encode")


def test_many_epochs_memorise(text: Path) -> None:
    check = found("windows", text, train=TrainConfig(epochs=50))
    expect(check, "warn", "50 times", "memorises")


def test_bad_shapes(text: Path) -> None:
    model = dataclasses.replace(MODEL)
    object.__setattr__(model, "n_heads", 5)
    expect(found("model", text, model=model), "fail", "n_heads=5 does not divide d_model=32", "message")


@pytest.mark.parametrize(
    ("change", "detail", "fix"),
    [
        ({"n_heads": 16}, "heads of 2 features", "fewer heads"),
        ({"d_ff": 8}, "narrower than d_model", "d_ff=128"),
    ],
)
def test_odd_shapes(change: dict[str, int], detail: str, fix: str, text: Path) -> None:
    model = dataclasses.replace(MODEL, **change)  # type: ignore[arg-type]
    expect(found("model", text, model=model), "warn", detail, fix)


def test_parameters_are_counted_without_making_them(text: Path) -> None:
    check = found("model", text, model=GPTConfig.preset("gpt2-xl", context_length=16))
    assert "1,47" in check.detail  # billions, less the 50,257-word vocabulary and long position table
    assert f"{GPT(MODEL).num_parameters():,}" != "0"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many bytes are free; the model lives on the CPU."""
    monkeypatch.setattr(checklist, "best_device", lambda: torch.device("cpu"))

    def free(count: float) -> None:
        found = namedtuple("memory", "available total")(int(count), 10**12)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: found)

    return free


@pytest.mark.parametrize(
    ("sequences", "status", "fix"),
    [(12.5, "warn", "Use micro_batch_size=11 or less"), (6, "fail", "micro_batch_size=5"),
     (0.5, "fail", "smaller model")],
)  # fmt: skip
def test_short_memory(
    sequences: float, status: str, fix: str, text: Path, memory: Callable[[float], None]
) -> None:
    model = dataclasses.replace(MODEL, vocab_size=len(set(text.read_text())) + 1, context_length=256)
    one, two = (sum(training_memory(model, count, device="cpu").values()) for count in (1, 2))
    memory(one + (sequences - 1) * (two - one))
    check = found("memory", text, model=model, train=TrainConfig(max_steps=1, precision="fp32"))
    expect(check, status, "free", fix)


def test_the_memory_is_that_of_the_estimator(text: Path, memory: Callable[[float], None]) -> None:
    """Training never holds all logits of a large vocabulary, so the checklist must not count them."""
    memory(2**40)
    model = GPTConfig.preset("gpt2")
    parts = training_memory(model, 12, device="cpu")
    check = found(
        "memory", text, model=model, train=TrainConfig(max_steps=1, precision="fp32"), tokenizer="gpt2"
    )
    assert check.detail.startswith(f"about {sum(parts.values()) / 2**30:.1f} GiB")
    assert parts["loss"] < 12 * 12 * model.vocab_size * model.context_length / 10


@pytest.mark.parametrize("settings", [{"micro_batch_size": 3}, {"activation_checkpointing": True}])
def test_less_is_needed_with(settings: dict[str, Any], text: Path) -> None:
    def needed(**train: Any) -> float:
        deep = dataclasses.replace(MODEL, n_layers=20)
        plan = TrainConfig(max_steps=1, batch_size=480, **train)
        detail = found("memory", text, model=deep, train=plan).detail
        return float(detail.split("about ")[1].split(" ")[0])

    assert needed(**settings) < 0.7 * needed()


def test_a_precision_that_is_slow_here(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(checklist, "best_device", lambda: torch.device("cpu"))
    expect(found("device", text, train=TrainConfig(max_steps=1)), "ok", "fp32", "")
    check = found("device", text, train=TrainConfig(max_steps=1, precision="bf16"))
    expect(check, "warn", "bf16", "precision='auto'")


@pytest.mark.parametrize(
    ("change", "status", "fix"),
    [
        ({"learning_rate": 0.5}, "fail", "5e-3"),
        ({"learning_rate": 0.02}, "warn", "5e-3"),
        ({"learning_rate": 1e-7}, "warn", "1e-4"),
        ({"betas": (0.9, 0.5)}, "warn", "(0.9, 0.95)"),
    ],
)
def test_unusual_optimizer(change: dict[str, Any], status: str, fix: str, text: Path) -> None:
    expect(found("optimizer", text, train=TrainConfig(max_steps=9, **change)), status, "AdamW", fix)


def test_attention_without_a_mask(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = F.scaled_dot_product_attention

    def unmasked(*args: Any, **options: Any) -> torch.Tensor:
        return real(*args, **options | {"is_causal": False})

    monkeypatch.setattr(F, "scaled_dot_product_attention", unmasked)
    expect(found("causal mask", text), "fail", "what the model says before it", "is_causal=True")


def test_attention_that_does_not_see_its_own_token(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "forward", lambda self, ids: torch.zeros(*ids.shape, 17, dtype=torch.float64))
    expect(found("causal mask", text), "fail", "changes nothing at its own position", "is_causal=True")


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
def test_the_mask_is_checked_for_every_kind_of_model(positions: Any, text: Path) -> None:
    model = dataclasses.replace(MODEL, positions=positions, n_kv_heads=2, dropout=0.1, attention_dropout=0.1)
    assert found("causal mask", text, model=model).status == "ok"


def test_unwritable_folder(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    expect(found("checkpoints", text), "fail", "Permission denied", "LABKIT_OUT")


def test_a_file_where_runs_should_go(text: Path) -> None:
    expect(found("checkpoints", text, out=text), "fail", "is a file", "LABKIT_OUT")


def test_nothing_is_left_behind(text: Path) -> None:
    before = sorted(text.parent.rglob("*"))
    found("checkpoints", text, out=text.parent / "new" / "runs")
    assert sorted(text.parent.rglob("*")) == before
