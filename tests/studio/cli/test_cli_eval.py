"""`labkit eval`: which texts are read, what is printed, what is said of what cannot be measured."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import GPT, TrainConfig
from labkit.analysis import evaluate_documents, total_score
from labkit.text import load_corpus
from labkit.training import Run, Trainer, fit
from labstudio.cli import main
from labstudio.cli.evaluate import choose_texts

pytest_plugins = ["sample_command"]
HOSTILE = "<script>\u202e\U0001f600אב\u200b"


@pytest.fixture
def evaluate(home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `labkit eval …` and returns (exit code, standard output, standard error)."""

    def call(*args: str) -> tuple[object, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["eval", *args])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


def cells(line: str) -> list[str]:
    return re.split("  +", line.strip())


def test_a_run_is_measured_on_what_it_was_not_trained_on(evaluate: Any) -> None:
    code, shown, errors = evaluate("first")
    assert (code, errors) == (0, "")
    title, blank, header, *rows = shown.splitlines()
    assert (title, blank) == ("first on tiny (val)", "")
    assert cells(header) == ["document", "tokens", "bytes", "loss", "perplexity", "bits per byte"]
    held_out = load_corpus("tiny").val
    assert [cells(row)[0] for row in rows] == [*(each.title for each in held_out), "total"]
    assert len({len(line) for line in (header, *rows)}) == 1  # aligned
    model, tokenizer = Run.open("first").load()
    total = total_score(evaluate_documents(model, tokenizer, held_out))
    numbers = [total.loss, total.perplexity, total.bits_per_byte]
    assert cells(rows[-1])[1:3] == [f"{total.tokens:,}", f"{total.n_bytes:,}"]
    assert [float(each) for each in cells(rows[-1])[3:]] == pytest.approx(numbers, abs=6e-4)


def test_the_stride_and_the_checkpoint_matter(evaluate: Any) -> None:
    plain = evaluate("first")[1]
    assert evaluate("first", "--stride", "3")[1] == plain  # the half of 7
    assert evaluate("first", "--stride", "7")[1] != plain
    code, shown, _ = evaluate("first", "--checkpoint", "2")
    assert code == 0
    assert shown == plain.replace("first on", "first at 2 on")


def test_training_texts_come_with_a_warning(evaluate: Any) -> None:
    code, shown, errors = evaluate("first", "--split", "train")
    assert code == 0
    assert shown.startswith("first on tiny (train)\n")
    assert errors == "Note: first was trained on these texts. For how it does on new ones: --split val.\n"
    assert evaluate("first", "--split", "test", "--corpus", "tiny")[2] == ""
    assert "was trained on" in evaluate("first", "--split", "all", "--corpus", "tiny")[2]


def test_a_text_of_your_own_is_read_whole(evaluate: Any, tmp_path: Path) -> None:
    text = load_corpus("tiny").test[0].text
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    code, shown, errors = evaluate("first", "--corpus", str(tmp_path / "own.txt"))
    assert (code, errors) == (0, "")
    assert shown.splitlines()[0] == f"first on {tmp_path / 'own.txt'} (all)"
    assert cells(shown.splitlines()[3])[:2] == ["own", f"{len(text) - 1:,}"]


def test_names_and_texts_are_shown_as_text(evaluate: Any, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / f"{HOSTILE.replace('/', '')}.txt").write_text("the lamp in the window", encoding="utf-8")
    (folder / "strange.txt").write_text(f"a{HOSTILE}", encoding="utf-8")
    code, shown, errors = evaluate("first", "--corpus", str(folder))
    assert code == 0
    assert "<script>U+202E\U0001f600אבU+200B" in shown
    row = next(line for line in shown.splitlines() if line.startswith("strange"))
    assert cells(row)[-3:] == ["-", "-", "-"]
    assert errors.startswith("Note: strange is left out: characters: ")
    assert errors.endswith("are not in the alphabet (first at position 1)\n")
    for hidden in "\u202e\u200b":
        assert hidden not in shown + errors
    code, shown, errors = evaluate("first", "--corpus", str(folder), "--against", "shipped")
    assert code == 0
    for hidden in "\u202e\u200b":
        assert hidden not in shown + errors


def test_a_text_in_other_characters_is_an_error(evaluate: Any, tmp_path: Path) -> None:
    (tmp_path / "greek.txt").write_text("αβγ\n\nδεζ", encoding="utf-8")
    code, shown, errors = evaluate("first", "--corpus", str(tmp_path / "greek.txt"))
    assert (code, shown) == (2, "")
    assert "labkit: No text could be measured (greek: characters: 'αβγδεζ' are not in the alphabet" in errors
    assert errors.count("\n") == 1


def test_against_another_tokenizer_bits_per_byte_are_compared(evaluate: Any) -> None:
    code, shown, errors = evaluate("first", "--against", "shipped")
    assert (code, errors) == (0, "")
    title, _, header, *rows = shown.splitlines()
    assert title == "first against shipped on tiny (val): bits per byte"
    assert cells(header) == ["document", "bytes", "first", "shipped", "difference"]
    _, _, first, other, difference = cells(rows[2])
    assert float(first) - float(other) == pytest.approx(float(difference), abs=2e-3)
    assert re.search(
        r"^shipped needs \d\.\d{4} bits per byte less here, but 2 stretches", shown, re.MULTILINE
    )
    assert "perplexity" not in shown


def test_a_run_against_its_own_checkpoint(evaluate: Any) -> None:
    code, shown, errors = evaluate("first", "--against-checkpoint", "latest")
    assert (code, errors) == (0, "")
    assert shown.startswith("first against first at latest on tiny (val)")
    assert "first and first at latest predict this text equally well" in shown or "too little" in shown
    assert "Loss" in shown
    assert "Where" not in shown  # nowhere do they differ


@pytest.fixture
def second(home: Path) -> Iterator[Run]:
    """A run of a notebook, whose text is not known, with the first one's tokenizer."""
    first, tokenizer = Run.open("first").load()
    model = GPT(first.config)
    torch.manual_seed(3)
    ids = torch.tensor(tokenizer.encode("eeee " * 40))
    config = TrainConfig(max_steps=2, eval_windows=2, threads=1)
    run = Run.create("second")
    fit(Trainer(model, ids, ids[:50], config, tokenizer=tokenizer), run=run, progress=False)
    yield run
    shutil.rmtree(run.path)


def test_where_two_models_differ_most(evaluate: Any, second: Run) -> None:
    code, shown, errors = evaluate("first", "--against", second.id, "--stride", "2")
    assert code == 0
    assert errors == f"Note: It is not known what {second.id} was trained on; it may have read these texts.\n"
    for word in ("ahead", "behind"):
        table = shown.split(f"Where first is most {word} (nats for the token)\n\n")[1].splitlines()[:11]
        assert cells(table[0]) == ["document", "token no.", "after", "token", "first", second.id]
        losses = [[float(each) for each in cells(row)[-2:]] for row in table[1:]]
        assert len(losses) == 10
        assert all((mine < theirs) == (word == "ahead") for mine, theirs in losses)
    assert "tokens that first predicts better (%)" in shown
    assert re.search(r"Loss \d\.\d{4} against \d\.\d{4} nats per token, perplexity \d+\.\d\d against", shown)


def test_a_run_of_a_notebook_needs_a_text(evaluate: Any, second: Run) -> None:
    code, shown, errors = evaluate(second.id)
    assert (code, shown) == (2, "")
    assert errors == (
        f"labkit: eval: {second.id} does not say what it was trained on. Name a text: --corpus shakespeare, "
        "or the path of a file or folder.\n"
    )
    assert evaluate(second.id, "--corpus", "tiny")[0] == 0


def with_data(run: Run, **data: Any) -> None:
    config = json.loads((run.path / "config.json").read_text())
    config["source"] = {"data": data}
    (run.path / "config.json").write_text(json.dumps(config))


def test_the_groups_that_a_run_holds_out_are_those_it_is_measured_on(second: Run, tmp_path: Path) -> None:
    for group in ("songs", "letters"):
        (tmp_path / "c" / group).mkdir(parents=True)
        for number in range(40):
            (tmp_path / "c" / group / f"{number}.txt").write_text(f"{group} {number}")
    folder = str(tmp_path / "c")
    with_data(second, corpus=folder, groups=["songs"], val_groups=["letters"])

    def groups(split: Any) -> set[str]:
        return {each.group for each in choose_texts([second.id], None, split, 7).documents}

    assert groups(None) == groups("val") == groups("test") == {"letters"}
    assert groups("train") == {"songs"}
    assert groups("all") == {"songs", "letters"}
    with_data(second, corpus=folder, val_groups=["none such"])
    with pytest.raises(
        ValueError, match=r"has no val texts of the groups none such\. Choose another --split"
    ):
        choose_texts([second.id], None, None, 7)
    with_data(second, sequences="x.pt")
    with pytest.raises(ValueError, match="was trained on prepared sequences, which have no documents"):
        choose_texts([second.id], None, None, 7)
    with_data(second, nonsense=1)
    with pytest.raises(ValueError, match=r"config.json is damaged, or of another version of labkit"):
        choose_texts([second.id], None, None, 7)


def test_the_held_out_end_of_encoded_texts_is_read_as_text_again(second: Run, tmp_path: Path) -> None:
    from labkit.text import encode_folder

    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number:02}.txt").write_text(f"story {number} of thirty " * 9)
    encode_folder(texts, tmp_path / "ids", "char", workers=1)
    with_data(second, corpus=str(tmp_path / "ids"))
    [document] = choose_texts([second.id], None, None, 7).documents
    assert document.text == ("story 29 of thirty " * 9)
    with pytest.raises(ValueError, match="of them only the held-out end is read: --split val"):
        choose_texts([second.id], None, "train", 7)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nosuch"], "There is no run 'nosuch'."),
        (["first", "--stride", "8"], "stride=8 must be from 1 to the model's context_length=7"),
        (["first", "--stride", "0"], "stride=0 must be from 1"),
        (["first", "--checkpoint", "77"], "Run first has no checkpoint '77'. Checkpoints: 2, best, latest."),
        (["shipped", "--checkpoint", "best"], "shipped is no run, so there is no checkpoint best of it."),
        (["first", "--corpus", "nosuch"], "'nosuch' is neither a corpus (shakespeare, tiny, verdict) nor"),
        (["first", "--threads", "0"], "eval: threads=0 must be at least 1."),
        (["first", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["first", "--against", "nosuch"], "There is no run 'nosuch'."),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(evaluate: Any, args: list[str], message: str) -> None:
    code, shown, errors = evaluate(*args)
    assert (code, shown) == (2, "")
    assert errors.startswith("labkit: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_help_says_what_is_measured_and_on_what(evaluate: Any) -> None:
    code, shown, _ = evaluate("--help")
    assert code == 0
    for word in ("--corpus", "--split", "--against", "--stride", "--checkpoint", "bits per byte", "held-out"):
        assert word in shown


def test_the_bar_is_on_a_terminal_only(evaluate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate("first")[2] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, shown, errors = evaluate("first")
    assert "token" in errors
    assert "reading" in errors
    assert "reading" not in shown
