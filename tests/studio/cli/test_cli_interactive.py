"""`labkit sample --interactive`: a loop that keeps the model and its settings, and survives mistakes."""

from __future__ import annotations

import builtins
import os
import re
import signal
import sys
import time
from typing import Any

import pytest

from labkit.config import SampleConfig
from labstudio.cli.sample import changed

pytest_plugins = ["sample_command"]

SHORT = ["first", "--max-new-tokens", "9"]


@pytest.fixture
def talk(sample: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Types lines, or has input() raise what is no line, and returns what `labkit sample` does."""

    def call(*lines: str | BaseException | type[BaseException], options: tuple[str, ...] = ()) -> Any:
        typed = iter([*lines, EOFError])

        def answer(prompt: str = "") -> str:
            print(prompt, end="")
            line = next(typed)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", answer)
        return sample("first", "--interactive", "--max-new-tokens", "9", *options)

    return call


def after_help(shown: str) -> str:
    """What was shown from the first prompt sign on."""
    return shown[shown.index("> ", shown.index("Ctrl-D")) :]


def test_each_line_is_continued_with_the_next_seed(talk: Any, sample: Any) -> None:
    code, shown, errors = talk("the", "the", "", options=("--seed", "6"))
    assert (code, errors) == (0, "")
    prompts = [("the", "6"), ("the", "7"), ("\n", "8")]
    texts = [sample(*SHORT, "--prompt", prompt, "--seed", seed)[1] for prompt, seed in prompts]
    assert after_help(shown) == "".join(f"> {text}" for text in texts) + "> \n"
    assert texts[0] != texts[1]


def test_settings_change_what_is_written_next(talk: Any, sample: Any) -> None:
    lines = ["/set temperature 0", "the", "/set top-k 1", "/set temperature 1.5", "the", "/set seed 3"]
    code, shown, errors = talk(*lines, "/set top_k none", "the")
    assert (code, errors) == (0, "")
    greedy = sample(*SHORT, "--prompt", "the", "--temperature", "0")[1]
    last = sample(*SHORT, "--prompt", "the", "--temperature", "1.5", "--seed", "3")[1]
    assert after_help(shown) == f"> > {greedy}> > > {greedy}> > > {last}> \n"
    assert greedy != last


def test_settings_are_shown_with_the_seed(talk: Any) -> None:
    _, shown, _ = talk("/set stop 'the end' e", "/set n 2", "/settings")
    for line in ("  stop                'the end' e", "  n                   2", "  top_k               none",
                 "  seed                0", "  max_new_tokens      9"):  # fmt: skip
        assert f"\n{line}\n" in shown.replace("> ", "\n")


def test_several_texts_move_the_seed_on_by_as_many(talk: Any) -> None:
    _, shown, _ = talk("the", "/settings", options=("--n", "3", "--seed", "5"))
    assert "==> 3 of 3, seed 7 <==" in shown
    assert "\n  seed                8\n" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature -1", "labkit: SampleConfig: temperature=-1 must be at least 0."),
        ("/set temperature warm", "labkit: SampleConfig: temperature='warm' must be a number."),
        ("/set temperature none", "labkit: SampleConfig: temperature=None must be a number."),
        ("/set max_new_tokens 2.5", "labkit: SampleConfig: max_new_tokens=2.5 must be a whole number."),
        ("/set temprature 1", "labkit: /set: 'temprature' is no setting. Choose from max_new_tokens, "),
        ("/set", "labkit: /set: '' is no setting. Choose from max_new_tokens, temperature, "),
        ("/set top_k", "labkit: /set top_k: needs one value, such as /set top_k none."),
        ("/set top_k 3 4", "labkit: /set top_k: needs one value"),
        ("/set stop ''", "labkit: SampleConfig: stop: '' must be a text that is not empty."),
        ("/set stop 'open", "labkit: No closing quotation"),
        ("/set seed -1", "labkit: /set seed: '-1' must be a whole number from 0 on."),
        ("/set seed x", "labkit: /set seed: 'x' must be a whole number from 0 on."),
        ("/sing", "/sing is no command. /help lists them."),
        ("a £", "labkit: characters: '£' is not in the alphabet"),
    ],
)
def test_a_mistake_is_explained_and_the_loop_goes_on(talk: Any, sample: Any, line: str, message: str) -> None:
    code, shown, errors = talk(line, "the")
    assert code == 0
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert shown.endswith(f"> {sample(*SHORT, '--prompt', 'the')[1]}> \n")


def test_bytes_that_are_no_text_are_refused_and_the_loop_goes_on(talk: Any, sample: Any) -> None:
    code, shown, errors = talk(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "the")
    assert (code, errors) == (0, "labkit: what was typed is not utf-8 text.\n")
    assert shown.endswith(f"> {sample(*SHORT, '--prompt', 'the')[1]}> \n")


def test_a_setting_that_the_model_refuses_leaves_the_loop_running(talk: Any) -> None:
    code, shown, errors = talk("/set top_k 4000", "the", "/set top_k 3", "the")
    assert code == 0
    assert errors.startswith("labkit: top-k: k=4000 must be")
    assert "> the" in shown


def test_help_is_shown_at_the_start_and_when_asked_for(talk: Any) -> None:
    assert talk()[1].count("/set NAME VALUE") == 1
    assert talk("/help")[1].count("/set NAME VALUE") == 2


def test_quit_and_ctrl_d_leave_with_0_and_ctrl_c_at_the_prompt_with_130(talk: Any) -> None:
    assert talk("/quit", "the")[:2] == talk("/quit")[:2]
    assert talk("/quit")[0] == talk()[0] == 0
    assert talk(KeyboardInterrupt, "the")[0] == 130


def test_ctrl_c_while_writing_stops_the_text_only(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from labkit.generation import decode as decoding

    draws, next_tokens = [], decoding.next_tokens

    def interrupted(*args: Any) -> Any:
        draws.append(1)
        if len(draws) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return next_tokens(*args)

    monkeypatch.setattr(decoding, "next_tokens", interrupted)
    code, shown, errors = talk("the", "and")
    assert (code, errors) == (0, "")
    assert re.search(r"\n> the[\s\S]{3}\n> and[\s\S]{9}\n> \n$", shown)


def test_the_model_is_loaded_once(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from labkit.training import Run

    loads, load = [], Run.load
    monkeypatch.setattr(Run, "load", lambda self: loads.append(1) or load(self))
    talk("the", "and", "/set n 2", "so")
    assert loads == [1]


def test_none_unsets_and_a_stop_list_is_replaced_as_a_whole() -> None:
    settings = SampleConfig(top_p=0.5, stop=("a",))
    assert changed(settings, 3, "top-p none") == (SampleConfig(stop=("a",)), 3)
    assert changed(settings, 3, 'stop "b c" d') == (SampleConfig(top_p=0.5, stop=("b c", "d")), 3)
    assert changed(settings, 3, "stop none") == changed(settings, 3, "stop") == (SampleConfig(top_p=0.5), 3)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_at_a_terminal_ctrl_c_stops_the_text_and_ctrl_d_leaves(start_sample: Any) -> None:
    import pty

    keyboard, terminal = pty.openpty()
    endless = ["--max-new-tokens", "100000", "--temperature", "0", "--eos-id", "0"]  # never the likeliest
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = start_sample("--interactive", *endless, start_new_session=True, **streams)
    os.close(terminal)
    try:
        read_until(keyboard, b"> ", after=b"(so does Ctrl-D)")
        os.write(keyboard, b"the\n")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        read_until(keyboard, b"> ", after=b"\n")
        os.write(keyboard, b"\x04")
        assert process.wait(60) == 0
    finally:
        os.close(keyboard)


def read_until(keyboard: int, sign: bytes, after: bytes) -> bytes:
    """Read what the terminal shows until the sign comes at its end, and what it comes after before it."""
    shown, deadline = b"", time.monotonic() + 60
    while not (shown.endswith(sign) and after in shown):
        assert time.monotonic() < deadline, shown
        shown += os.read(keyboard, 4096)
    return shown
