"""`labkit sample`: where prompts come from, what is printed, plain errors."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.config import SampleConfig
from labkit.weights import PRETRAINED, load_pretrained

pytest_plugins = ["sample_command"]

SHORT = ["first", "--max-new-tokens", "9"]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes standard input a pipe that holds some bytes."""
    opened: list[io.TextIOWrapper] = []

    def hold(data: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, data)
        os.close(writing)
        opened.append(io.TextIOWrapper(os.fdopen(reading, "rb"), encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield hold
    for each in opened:
        each.close()


def test_the_text_begins_with_the_prompt_and_depends_on_the_seed_alone(sample: Any) -> None:
    texts = [sample(*SHORT, "--prompt", "the", "--seed", seed) for seed in ("0", "0", "1")]
    assert [code for code, _, _ in texts] == [0, 0, 0]
    assert texts[0][1] == texts[1][1] != texts[2][1]
    assert re.fullmatch(r"the[\s\S]{9}\n", texts[0][1])
    assert texts[0][2] == ""
    greedy = [sample(*SHORT, "--prompt", "the", "--temperature", "0", "--seed", seed)[1] for seed in "12"]
    assert greedy[0] == greedy[1]


def test_the_prompt_may_come_from_a_file_a_pipe_or_the_command_line(
    sample: Any, pipe: Any, tmp_path: Path
) -> None:
    wanted = sample(*SHORT, "--prompt", "the\nend")[1]
    assert wanted.startswith("the\nend")
    file = tmp_path / "prompt.txt"
    for content in (b"the\nend", b"the\nend\n", b"the\r\nend\r\n", b"\xef\xbb\xbfthe\nend"):
        file.write_bytes(content)
        assert sample(*SHORT, "--prompt-file", str(file))[1] == wanted
        for options in ([], ["--prompt-file", "-"]):
            pipe(content)
            assert sample(*SHORT, *options)[1] == wanted
    pipe(b"the\nend\n\n")  # only the last line break is left out
    assert sample(*SHORT)[1] == sample(*SHORT, "--prompt", "the\nend\n")[1]


def test_without_any_prompt_the_text_begins_at_a_line_break(
    sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = sample(*SHORT, "--prompt", "\n")[1]
    assert sample(*SHORT)[1] == wanted
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert sample(*SHORT)[1] == wanted
    monkeypatch.setattr(sys, "stdin", None)  # as without a console
    assert sample(*SHORT)[1] == wanted


def test_a_prompt_given_by_hand_leaves_the_pipe_alone(sample: Any, pipe: Any) -> None:
    pipe(b"something else")
    assert sample(*SHORT, "--prompt", "the")[1].startswith("the")
    assert sys.stdin.read() == "something else"


def test_several_texts_are_those_of_consecutive_seeds_under_headings(sample: Any) -> None:
    _, shown, _ = sample(*SHORT, "--prompt", "the", "--n", "3", "--seed", "4", "--temperature", "2")
    texts = re.split(r"\n?==> (\d) of 3, seed (\d) <==\n", shown)[1:]
    assert [texts[0::3], texts[1::3]] == [["1", "2", "3"], ["4", "5", "6"]]
    for seed, text in zip("456", texts[2::3], strict=True):
        alone = sample(*SHORT, "--prompt", "the", "--seed", seed, "--temperature", "2")[1]
        assert text == alone
    assert len(set(texts[2::3])) == 3


def test_several_texts_are_shown_whole_whichever_ends_first(sample: Any) -> None:
    options = ["first", "--prompt", "t", "--max-new-tokens", "60", "--stop", "e", " "]
    _, shown, _ = sample(*options, "--n", "4")
    texts = re.split(r"\n?==> \d of 4, seed \d <==\n", shown)[1:]
    assert len({len(text) for text in texts}) > 1
    assert texts == [sample(*options, "--seed", str(seed))[1] for seed in range(4)]


def test_a_text_ends_before_a_stop_string(sample: Any) -> None:
    options = ["first", "--prompt", "the", "--max-new-tokens", "80"]
    whole = sample(*options)[1].removeprefix("the").removesuffix("\n")
    stops = [whole[31:33], whole[20:22]]
    cut = sample(*options, "--stop", *stops)[1]
    assert cut == "the" + whole[: min(whole.index(stop) for stop in stops)] + "\n"


def test_it_stops_where_the_model_ends_its_text(
    sample: Any, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """The model is made to draw "t", then the end of a text, then "t" again."""
    import torch

    from labkit.generation import decode as decoding
    from labkit.text import load_tokenizer

    tokenizer = load_tokenizer(home / "runs" / "first" / "tokenizer.json")
    [letter] = tokenizer.encode("t")
    drawn = iter([letter, tokenizer.eos_id, letter])
    monkeypatch.setattr(decoding, "next_tokens", lambda *_: torch.tensor([next(drawn)]))
    assert sample("first", "--prompt", "the ", "--max-new-tokens", "3") == (0, "the t\n", "")


def test_every_setting_reaches_the_model(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import labkit.generation

    asked: list[SampleConfig] = []
    stream_tokens = labkit.generation.stream_tokens

    def watched(model: Any, tokenizer: Any, prompts: Any, config: SampleConfig, **options: Any) -> Any:
        asked.append(config)
        return stream_tokens(model, tokenizer, prompts, config, **options)

    monkeypatch.setattr(labkit.generation, "stream_tokens", watched)
    settings = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2}
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words += ["--stop", "ab", "c d", "--n", "2", "--max-new-tokens", "6", "--eos-id", "4"]
    code, _, errors = sample("first", "--prompt", "the", *words)
    assert (code, errors) == (0, "")
    assert asked == [SampleConfig(**settings, stop=("ab", "c d"), n=2, max_new_tokens=6, eos_id=4)]
    assert type(asked[0]) is SampleConfig  # the checked one


def test_a_long_prompt_is_a_plain_note(sample: Any) -> None:
    for _ in range(2):  # each time, not only the first
        code, shown, errors = sample(*SHORT, "--prompt", "the lamp in")
        assert code == 0
        assert shown.startswith("the lamp in")
        assert errors == "Note: the prompt has 11 tokens; the model reads the last 7.\n"


def test_a_folder_of_weights_writes_what_the_model_in_it_writes(sample: Any, tmp_path: Path) -> None:
    shipped = sample("--prompt", "ROMEO.\n", "--max-new-tokens", "8")
    assert shipped[0] == 0
    copied = shutil.copytree(PRETRAINED, tmp_path / "copied")
    for folder in (str(PRETRAINED), str(copied)):
        assert sample(folder, "--prompt", "ROMEO.\n", "--max-new-tokens", "8") == shipped
    (copied / "tokenizer.json").unlink()
    code, shown, errors = sample(str(copied), "--max-new-tokens", "8")
    assert (code, shown) == (2, "")
    assert errors.startswith(f"labkit: {copied / 'tokenizer.json'}: cannot be read")


def test_a_run_may_be_named_by_its_folder(sample: Any, home: Path) -> None:
    assert sample(str(home / "runs" / "first"), *SHORT[1:]) == sample(*SHORT)


def test_threads_are_set(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert sample(*SHORT, "--threads", "3", "--device", "cpu")[0] == 0
    assert asked == [3]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nosuch"], "There is no run 'nosuch'. Runs: first."),
        (["first", "--temperature", "-1"], "SampleConfig: temperature=-1.0 must be at least 0."),
        (["first", "--temperature", "nan"], "SampleConfig: temperature=nan must be finite."),
        (["first", "--temperature", "inf"], "SampleConfig: temperature=inf must be finite."),
        (["first", "--top-k", "0"], "SampleConfig: top_k=0 must be at least 1."),
        (["first", "--top-k", "4000"], "top-k: k=4000 must be a whole number from 1, which"),
        (["first", "--top-p", "0"], "SampleConfig: top_p=0.0 must be in (0, 1]; 1 keeps everything."),
        (["first", "--top-p", "1.01"], "SampleConfig: top_p=1.01 must be in (0, 1]; 1 keeps everything."),
        (["first", "--top-p", "nan"], "SampleConfig: top_p=nan must be finite."),
        (["first", "--min-p", "-0.1"], "SampleConfig: min_p=-0.1 must be in [0, 1]; 0 keeps everything."),
        (["first", "--min-p", "1.1"], "SampleConfig: min_p=1.1 must be in [0, 1]; 0 keeps everything."),
        (["first", "--repetition-penalty", "0"], "repetition_penalty=0.0 must be above 0; 1 changes"),
        (["first", "--n", "0"], "SampleConfig: n=0 must be at least 1."),
        (["first", "--max-new-tokens", "0"], "SampleConfig: max_new_tokens=0 must be at least 1."),
        (["first", "--stop", ""], "SampleConfig: stop: '' must be a text that is not empty."),
        (["first", "--stop", "the", "£"], "stop='£' can never appear: characters: '£' is not in"),
        (["first", "--prompt", ""], "The prompt is empty; give at least one character"),
        (["first", "--prompt", "a £"], "characters: '£' is not in the alphabet (first at position 2)."),
        (["first", "--prompt", "a", "--prompt-file", "b"], "sample: give --prompt or --prompt-file, not"),
        (["first", "--prompt-file", "no/such.txt"], f"sample: {Path('no/such.txt')} cannot be read (No such"),
        (["first", "--interactive", "--prompt", "a"], "sample: --interactive asks for prompts; leave"),
        (["first", "--interactive", "--chat"], "sample: --chat answers one message; leave --interactive out"),
        (["first", "--chat", "--prompt", "a"], "the characters tokenizer has no chat template"),
        (["first", "--seed", "-1"], "sample: seed=-1 must be from 0 to 9223372036854775807."),
        (["first", "--seed", str(2**63)], "sample: seed=9223372036854775808 must be from 0 to"),
        (["first", "--threads", "0"], "sample: threads=0 must be at least 1."),
        (["first", "--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(sample: Any, args: list[str], message: str) -> None:
    code, shown, errors = sample(*args)
    assert (code, shown) == (2, "")
    assert errors.startswith("labkit: ")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--temperature", "warm"], "--temperature: could not convert string to float: 'warm'"),
        (["--top-k", "2.5"], "2.5"),
        (["--top-k"], "--top-k"),
        (["--temprature", "1"], "--temprature"),
    ],
)
def test_what_cannot_be_read_as_an_option_is_named(sample: Any, args: list[str], message: str) -> None:
    code, shown, errors = sample("first", *args)
    assert (code, shown) == (2, "")
    assert message in re.sub(r"[\s│]+", " ", errors)
    assert "Traceback" not in errors


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"caf\xe9"])
def test_a_prompt_that_is_no_utf8_is_named(sample: Any, pipe: Any, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(data)
    assert f"labkit: sample: {file} is not UTF-8 text" in sample("first", "--prompt-file", str(file))[2]
    pipe(data)
    assert "labkit: sample: standard input is not UTF-8 text" in sample("first")[2]


def test_an_empty_pipe_is_an_empty_prompt(sample: Any, pipe: Any) -> None:
    pipe(b"")
    code, shown, errors = sample("first")
    assert (code, shown) == (2, "")
    assert errors.startswith("labkit: The prompt is empty")


def test_help_names_every_setting_and_says_where_prompts_come_from(sample: Any) -> None:
    code, shown, _ = sample("--help")
    assert code == 0
    where = ["--prompt ", "--prompt-file", "--interactive", "--seed", "--device", "--threads"]
    how = ["--top-k", "--top-p", "--min-p", "--repetition-penalty", "--stop", "--temperature", "--n "]
    for option in (*where, *how, "--max-new-tokens"):
        assert f" {option}" in shown
    assert 'echo "ROMEO." | labkit sample' in re.sub(r"[\s│]+", " ", shown)


# In a process of its own


def test_a_reader_that_leaves_early_ends_it_quietly(start_sample: Any) -> None:
    process = start_sample("--prompt", "a\nb", "--max-new-tokens", "3000",
                     stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().strip() == b"a"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_echo_into_a_pipe(start_sample: Any) -> None:
    process = start_sample("--max-new-tokens", "5", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    shown, _ = process.communicate(b"the lamp\n", timeout=120)
    assert process.returncode == 0
    assert shown.startswith(b"the lamp")


def test_the_shipped_model_is_loaded_where_no_run_is_named(sample: Any) -> None:
    model, tokenizer = load_pretrained()
    from labkit.generation import complete

    [text] = complete(model, tokenizer, "ROMEO.\n", SampleConfig(max_new_tokens=7), seed=2)
    shown = sample("--prompt", "ROMEO.\n", "--max-new-tokens", "7", "--seed", "2")[1]
    assert shown == f"ROMEO.\n{text.text}\n"
