"""Training runs over HTTP: what they are, and their rows while they are written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from serving import TOKEN, Running, wait_for
from sse_starlette import EventSourceResponse

from labkit.training import Run
from labstudio.serve import runs as served

STRANGE = "<script>alert(1) \u202eevil 🙂日"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    monkeypatch.setattr(served, "POLL_SECONDS", 0.02)
    return tmp_path


def made(name: str, steps: int = 0, total: int = 5) -> Run:
    run = Run.create("new")
    run = Run(run.path.rename(run.path.with_name(name)))  # also a name that labkit itself would not give
    run.write_config({"parameters": 77, "total_steps": total, "model": {"d_model": 12}})
    for step in range(1, steps + 1):
        write(run, step)
    return run


def write(run: Run, step: int, **more: Any) -> None:
    row = {"event": "step", "step": step, "loss": 1 / step, "tokens": 30 * step, "seconds": step / 4}
    run.append("metrics", row | more)


def finish(run: Run, total: int = 5) -> None:
    run.append(
        "metrics", {"event": "evaluation", "step": total, "val_loss": 1.5, "perplexity": 4.48, "seconds": 9}
    )


class Follower:
    """Reads the events of a run one by one."""

    def __init__(self, client: httpx.Client, run: str, last: str | None = None) -> None:
        headers = {} if last is None else {"Last-Event-ID": last.encode("latin-1")}
        self._context = client.stream("GET", f"/runs/{run}/metrics", headers=headers)
        self.answer = self._context.__enter__()
        self._lines = self.answer.iter_lines()

    def event(self, *, comments: bool = False) -> dict[str, str] | None:
        """The next event; None when the stream has ended."""
        found: dict[str, str] = {}
        for line in self._lines:
            if not line:
                if found and (comments or list(found) != [""]):
                    return found
                found = {}
            else:
                name, _, value = line.partition(": ") if line[0] != ":" else ("", "", line[2:])
                found[name] = value
        return None

    def steps(self, count: int) -> list[int]:
        """The steps of the next events, all of them rows."""
        return [json.loads(self.event()["data"])["step"] for _ in range(count)]  # type: ignore[index]

    def close(self) -> None:
        self._context.__exit__(None, None, None)


@pytest.fixture
def client(tiny: Running, home: Path) -> Iterator[httpx.Client]:
    with tiny.http() as client:
        yield client


def test_runs_are_listed_with_what_came_of_them(client: httpx.Client) -> None:
    assert client.get("/runs").json() == {"object": "list", "data": []}
    finish(made("done", 5))
    made("begun", 2)
    done, begun = client.get("/runs").json()["data"]
    assert (done["id"], done["state"], done["step"], done["tokens"]) == ("done", "finished", 5, 150)
    assert (done["val_loss"], done["perplexity"], done["bits_per_byte"]) == (1.5, 4.48, None)
    assert (begun["id"], begun["state"], begun["step"], begun["val_loss"]) == ("begun", "running?", 2, None)
    shown = client.get("/runs/done").json()
    assert shown.pop("config")["model"] == {"d_model": 12}
    assert shown == done


def test_a_damaged_run_is_shown_as_what_it_is(client: httpx.Client) -> None:
    made("bad").path.joinpath("config.json").write_text("{")
    [listed] = client.get("/runs").json()["data"]
    assert listed["state"].startswith("unreadable")
    assert client.get("/runs/bad").json() == listed | {"config": None}


@pytest.mark.parametrize("name", [STRANGE, "50%25 &?#;= ", "日" * 80])
def test_foreign_names_are_text(client: httpx.Client, name: str) -> None:
    run = made(name, 5)
    sample = {"step": 3, "prompt": "<b>", "text": "\u202e</script>🙂\ud800"}
    (run.path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    finish(run)
    [listed] = client.get("/runs").json()["data"]
    assert listed["id"] == name
    address = f"/runs/{quote(name, safe='')}"
    for answer in (client.get(address), client.get(f"{address}/samples")):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.content.isascii()
    assert answer.json()["data"] == [sample]
    assert client.get(f"{address}/metrics").text.endswith('event: end\ndata: {"state":"finished"}\n\n')


def test_a_name_that_is_no_text_is_shown_all_the_same(client: httpx.Client, home: Path) -> None:
    run = made("first", 5)
    run.path.rename(run.path.with_name("x\udcff"))
    assert client.get("/runs").json()["data"][0]["id"] == "x\udcff"


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fetc%2fpasswd", "%2e%2e", "%2e%2e%2fruns%2ffirst", "....//first", "../runs/first",
        "first%2f", "first%00", "%00", "%2fetc%2fpasswd", "//etc/passwd", ".%2ffirst", "first%20", "FIRST",
        "a" * 5000, "%ff", "first%0d%0aX:y", "*", "fir?t",
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["", "/metrics", "/samples"])
def test_only_the_name_of_a_run_finds_it(tiny: Running, home: Path, path: str, what: str) -> None:
    made("first", 1)
    head = f"GET /runs/{path}{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    with tiny.connect() as connection:
        connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        answer = b""
        while new := connection.recv(65536):
            answer += new
    status = answer.split(b" ")[1]
    assert status == b"404"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_rows_come_as_they_are_written_until_the_end(client: httpx.Client) -> None:
    run = made("live", 2)
    follower = Follower(client, "live")
    assert follower.answer.headers["content-type"].startswith("text/event-stream")
    assert follower.steps(2) == [1, 2]
    write(run, 3)
    assert follower.steps(1) == [3]
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')
        file.flush()
        write(run, 4)  # after a torn line
    assert follower.steps(1) == [4]
    write(run, 5, loss=math.nan, grad_norm=-math.inf)
    last = json.loads(follower.event()["data"])  # type: ignore[index]
    assert (last["step"], last["loss"], last["grad_norm"]) == (5, None, None)
    finish(run)
    assert json.loads(follower.event()["data"])["event"] == "evaluation"  # type: ignore[index]
    assert follower.event() == {"event": "end", "data": '{"state":"finished"}'}
    assert follower.event() is None


def test_a_row_is_sent_when_its_line_is_whole(client: httpx.Client) -> None:
    run = made("live", 1)
    follower = Follower(client, "live")
    assert follower.steps(1) == [1]
    line = json.dumps({"event": "step", "step": 2, "text": "é日🙂"}, ensure_ascii=False).encode() + b"\n"
    for start in range(0, len(line), 9):
        with (run.path / "metrics.jsonl").open("ab") as file:
            file.write(line[start : start + 9])
    assert json.loads(follower.event()["data"])["text"] == "é日🙂"  # type: ignore[index]
    follower.close()


def test_who_lost_the_connection_goes_on_after_the_last_event(client: httpx.Client) -> None:
    run = made("live", 900)  # more than is read at once
    follower = Follower(client, "live")
    events = [follower.event() for _ in range(900)]
    follower.close()
    write(run, 901)
    again = Follower(client, "live", events[447]["id"])  # type: ignore[index]
    assert again.steps(453) == list(range(449, 902))
    again.close()


@pytest.mark.parametrize(
    "last", ["0", "-", "x-y", "1-99999999", "9999-00000000", "9" * 500, "1-2-3", "²-3", ""]
)
def test_a_last_event_of_elsewhere_means_from_the_start(client: httpx.Client, last: str) -> None:
    made("live", 3)
    follower = Follower(client, "live", last)
    first = follower.event()
    if first == {"event": "rewind", "data": "{}"}:
        first = follower.event()
    assert json.loads(first["data"])["step"] == 1  # type: ignore[index]
    follower.close()


def test_who_comes_again_after_the_end_is_told_of_it_again(client: httpx.Client) -> None:
    finish(made("done", 5))
    follower = Follower(client, "done")
    events = [follower.event() for _ in range(6)]
    assert follower.event() == {"event": "end", "data": '{"state":"finished"}'}
    again = Follower(client, "done", events[-1]["id"])  # type: ignore[index]
    assert again.event() == {"event": "end", "data": '{"state":"finished"}'}
    assert again.event() is None


def test_rows_that_cannot_be_read_are_an_error_of_the_stream(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: Any) -> None:
        raise PermissionError(13, "Permission denied", "/home/of/somebody")

    made("live", 1)
    monkeypatch.setattr(served.Tail, "new_rows", denied)
    follower = Follower(client, "live")
    event = follower.event()
    assert event is not None
    assert (event["event"], "Permission denied" in event["data"]) == ("error", True)
    assert "somebody" not in event["data"]
    assert follower.event() is None


def test_numbers_that_json_cannot_hold_are_null_everywhere(client: httpx.Client) -> None:
    run = made("wild", 1)
    run.append(
        "metrics", {"event": "evaluation", "step": 5, "val_loss": 800.0, "perplexity": math.inf, "seconds": 9}
    )
    run.append("samples", {"step": 5, "prompt": math.nan, "text": "NaN"})
    config = run.path / "config.json"
    config.write_text(config.read_text().replace("77", '77, "lr": NaN'))
    [listed] = client.get("/runs").json()["data"]
    assert (listed["val_loss"], listed["perplexity"]) == (800.0, None)
    assert client.get("/runs/wild").json()["config"]["lr"] is None
    assert client.get("/runs/wild/samples").json()["data"] == [{"step": 5, "prompt": None, "text": "NaN"}]
    assert '"perplexity":null' in client.get("/runs/wild/metrics").text


def test_a_run_that_takes_steps_again_says_so(client: httpx.Client) -> None:
    run = made("live", 4)
    follower = Follower(client, "live")
    assert follower.steps(4) == [1, 2, 3, 4]
    run.rewind(2, [])
    write(run, 3)
    assert follower.event() == {"event": "rewind", "data": "{}"}
    assert follower.steps(3) == [1, 2, 3]
    follower.close()


def test_while_nothing_happens_the_connection_shows_life(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventSourceResponse, "DEFAULT_PING_INTERVAL", 0.05)
    made("live", 1)
    follower = Follower(client, "live")
    assert follower.steps(1) == [1]
    assert all(follower.event(comments=True)[""].startswith("ping") for _ in range(3))  # type: ignore[index]
    follower.close()


def test_followers_are_counted_and_those_who_left_are_not(tiny: Running, client: httpx.Client) -> None:
    made("live", 1)
    followers = [Follower(client, "live") for _ in range(16)]
    assert [follower.steps(1) for follower in followers] == [[1]] * 16
    answer = client.get("/runs/live/metrics")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    for follower in followers:
        follower.close()
    wait_for(lambda: tiny.service.followers == 0)
    follower = Follower(client, "live")
    assert follower.steps(1) == [1]
    follower.close()
    wait_for(lambda: tiny.service.followers == 0)
