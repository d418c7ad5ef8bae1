"""`labkit serve`: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import TOKEN, tiny_app

from labkit import SampleConfig
from labkit.generation import complete
from labkit.weights import load_pretrained
from labstudio.cli import main
from labstudio.serve.app import create_app
from labstudio.serve.config import ServeConfig


class Command:
    """`labkit serve …` in a process of its own."""

    def __init__(self, home: Path, *args: str, token: str | None = TOKEN) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LABKIT_OUT": str(home)}
        environment.pop("LABKIT_TOKEN", None)
        if token is not None:
            environment["LABKIT_TOKEN"] = token
        command = [sys.executable, "-m", "labstudio", "serve", "--port", "0", *args]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(3)]
        self.shown = "".join(lines)
        found = re.search(r"base URL (http://\S+)/v1", self.shown)
        assert found, self.shown + self.process.stdout.read()
        self.url = found[1]

    def client(self, token: str = TOKEN) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0, timeout=120)

    def end(self, number: int) -> tuple[int, str]:
        """Exit code and what was printed since the start."""
        self.process.send_signal(number)
        shown, _ = self.process.communicate(timeout=60)
        return self.process.returncode, shown


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Command] = []

    def call(*args: str, **options: Any) -> Command:
        started.append(Command(tmp_path, *args, **options))
        return started[-1]

    yield call
    for command in started:
        command.process.kill()
        command.process.wait()


def test_the_shipped_model_is_served_and_writes_what_labkit_sample_writes(start: Any) -> None:
    command = start(token=None)
    token = re.search(r"^Token: (\S{20,})$", command.shown, re.MULTILINE)[1]
    answer = command.client(token).completions.create(model="shipped", prompt="ROMEO.", max_tokens=15, seed=4)
    [expected] = complete(*load_pretrained(), "ROMEO.", SampleConfig(max_new_tokens=15), seed=4)
    assert answer.choices[0].text == expected.text
    assert httpx.get(f"{command.url}/health").json() == {"status": "ok"}
    code, shown = command.end(signal.SIGTERM)
    assert (code, shown) == (0, "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{command.url}/health")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_running_answers_have_time_to_end_and_then_are_told(start: Any, number: int, code: int) -> None:
    command = start("--grace-seconds", "0.5", "--max-tokens", "10000000")
    assert TOKEN not in command.shown
    stream = command.client().completions.create(
        model="shipped", prompt="A", max_tokens=10**7, stream=True, temperature=0
    )
    assert next(iter(stream)).choices[0].text is not None
    command.process.send_signal(number)
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    shown, _ = command.process.communicate(timeout=60)
    assert (command.process.returncode, shown) == (code, "")


def test_a_follower_is_told_of_the_end_too(start: Any, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "live"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"total_steps": 9}')
    command = start()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.stream("GET", f"{command.url}/runs/live/metrics", headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        command.process.send_signal(signal.SIGTERM)
        assert "shutting down" in "".join(lines)
    assert command.process.wait(60) == 0


# What it refuses


@pytest.fixture
def serve(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `labkit serve …` and returns (exit code, standard error)."""
    monkeypatch.delenv("LABKIT_TOKEN", raising=False)

    def call(*args: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as end:
            main(["serve", *args])
        return end.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_other_machines_are_let_in_only_with_a_token_of_ones_own(
    serve: Any, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    code, said = serve("--host", host)
    assert code == 2
    assert "lets other machines in" in said
    assert "not encrypted" in said
    monkeypatch.setenv("LABKIT_TOKEN", "short")
    code, said = serve("--host", host)
    assert (code, "at least 16 characters" in said) == (2, True)
    assert ServeConfig(host=host, token=TOKEN).loopback is False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.4.5"])
def test_on_this_machine_a_token_is_made(host: str) -> None:
    assert ServeConfig(host=host).loopback


@pytest.mark.parametrize("token", ["fifteen-letters", "sixteen letters !", "sixteen-letters-é", ""])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="at least 16 characters") as refused:
        ServeConfig(token=token)
    assert "sixteen" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"port": 65536}, "port=65536"), ({"port": -1}, "port=-1"), ({"port": True}, "port=True"),
        ({"body_bytes": 0}, "body_bytes=0"), ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_texts": 0}, "max_texts=0"), ({"active": 0}, "active=0"), ({"waiting": -1}, "waiting=-1"),
        ({"followers": 0}, "followers=0"), ({"connections": 0}, "connections=0"),
        ({"generate_seconds": float("nan")}, "generate_seconds=nan"),
        ({"idle_seconds": 0}, "idle_seconds=0"), ({"stall_seconds": 0.0}, "stall_seconds=0"),
        ({"grace_seconds": -0.1}, "grace_seconds=-0.1"), ({"max_tokens": 1.5}, "max_tokens=1.5"),
    ],
)  # fmt: skip
def test_limits_that_cannot_be_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"ServeConfig: {named}")):
        ServeConfig(**changes)


def test_the_token_is_not_shown_by_accident() -> None:
    assert TOKEN not in repr(ServeConfig(token=TOKEN))


def test_an_application_needs_a_token() -> None:
    model, tokenizer = load_pretrained()
    with pytest.raises(ValueError, match="has no token"):
        create_app(model, tokenizer, ServeConfig())


def test_a_port_that_is_taken_is_named(serve: Any) -> None:
    from labstudio.serve.server import listen

    with listen(ServeConfig(port=0)) as sock:
        port = str(sock.getsockname()[1])
        code, said = serve("--port", port)
    assert code == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in said


def test_without_the_web_framework_the_way_to_it_is_told(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, said = serve()
    assert code == 2
    assert "pip install 'labkit[serve]'" in said


def test_help_explains_every_limit_without_torch() -> None:
    code = (
        "import sys; from labstudio.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "finally: print(sorted({'torch', 'fastapi', 'uvicorn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.endswith("[]\n")
    for name in ServeConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_the_model_is_in_evaluation_mode_whatever_it_was_in() -> None:
    model, tokenizer = load_pretrained()
    app = create_app(model.train(), tokenizer, ServeConfig(token=TOKEN))
    assert not app.state.service.model.training
    assert tiny_app().state.service.name == "tiny"
