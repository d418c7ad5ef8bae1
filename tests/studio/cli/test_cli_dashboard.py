"""`labkit dashboard`: nothing without the token, nothing but the page with it, and a clean end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_process import TOKEN, Running, dashboard

from labstudio.cli import main

LONG = "x" * 16


def refused(*options: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["dashboard", "--no-browser", *options])
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--token", "short"], "the token has 5 characters; it needs at least 16"),
        (["--token", ""], "the token has 0 characters"),
        (["--token", "sixteen letters & more"], "letters, digits, -, _, . and ~"),
        (["--port", "70000"], "port=70000 must be from 1 to 65535"),
        (["no-such-folder"], "there is no folder 'no-such-folder'"),
        (["--public"], "the connection is not encrypted. An SSH tunnel is safer"),
        (["--public", "--token", "short"], "the token has 5 characters"),
    ],
)
def test_bad_options_are_explained_before_anything_starts(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABKIT_TOKEN", raising=False)
    assert refused(*options) == 2
    assert message in capsys.readouterr().err


def test_an_empty_variable_is_no_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_TOKEN", "")
    assert refused("--public") == 2
    assert "needs a token of your own" in capsys.readouterr().err


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the server would have been told."""
    pytest.importorskip("voila")
    found: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "labstudio.dashboard.server.serve", lambda *args, open_browser: found.append((*args, open_browser))
    )
    for name in ("LABKIT_RUNS", "LABKIT_OUT", "LABKIT_HOME", "LABKIT_TOKEN"):
        monkeypatch.setenv(name, "")  # so that it is put back
    return found


def test_a_token_is_always_made_and_never_the_same(told: list[tuple[object, ...]]) -> None:
    refused(), refused()
    (address, port, token, browser), (*_, other, _) = told
    assert (address, port, browser) == ("127.0.0.1", None, False)
    assert isinstance(token, str)
    assert len(token) >= 32
    assert token != other


def test_the_variable_is_used_and_not_handed_on(
    told: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_TOKEN", LONG)
    assert refused("--public", "--port", "8123") == 0
    assert told == [("0.0.0.0", 8123, LONG, False)]
    assert "LABKIT_TOKEN" not in os.environ


def test_the_page_learns_where_runs_are_and_where_it_was_started(
    told: list[tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refused("my runs") == 0
    assert os.environ["LABKIT_RUNS"] == str((tmp_path / "my runs").resolve())
    assert os.environ["LABKIT_HOME"] == str(tmp_path)


# ---- a real server ----


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    pytest.importorskip("voila")
    runs = tmp_path_factory.mktemp("runs")
    with dashboard(runs, tmp_path_factory.mktemp("scratch")) as running:
        yield running


class Unmoved(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object) -> None:
        return None


def answer(
    server: Running, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and text."""
    request = urllib.request.Request(server.address + path, method=method, headers=headers)
    try:
        with urllib.request.build_opener(Unmoved).open(request, timeout=60) as reply:
            return reply.status, dict(reply.headers), reply.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode("utf-8", "replace")


KERNEL = "/api/kernels/aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


@pytest.mark.parametrize(
    "path", ["/", "/?token=wrong", "/?token=", "/anything", "/api/kernels", "/voila/tree"]
)
def test_without_the_token_one_is_asked_for_it(server: Running, path: str) -> None:
    status, headers, _ = answer(server, path)
    assert status == 302
    assert headers["Location"].startswith("/login?next=")


@pytest.mark.parametrize(
    ("path", "method"),
    [(KERNEL, "GET"), (KERNEL, "DELETE"), ("/voila/api/shutdown/a", "POST"), ("/login", "POST")],
)
def test_without_the_token_nothing_is_done(server: Running, path: str, method: str) -> None:
    assert answer(server, path, method)[0] == 403


def upgrade(server: Running, path: str, **headers: str) -> int:
    """The status of an attempt to open a websocket."""
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    asked = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    asked["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    try:
        connection.request("GET", path, headers=asked | headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_websocket_wants_the_token_too(server: Running) -> None:
    assert upgrade(server, f"{KERNEL}/channels") == 403
    assert upgrade(server, f"{KERNEL}/channels?token=wrong") == 403
    assert upgrade(server, f"{KERNEL}/channels", Origin="http://evil.example") == 403
    assert upgrade(server, f"{KERNEL}/channels?token={TOKEN}") == 404  # let in, but there is no such kernel


def test_with_the_token_kernels_are_known_by_their_name_alone(server: Running) -> None:
    assert answer(server, KERNEL, Authorization=f"token {TOKEN}")[0] == 404
    status, headers, _ = answer(server, f"/api/kernels?token={TOKEN}", "GET")  # no list of them
    assert (status, headers["Location"]) == (302, "/voila/files/api/kernels")
    assert answer(server, f"/api/kernels?token={TOKEN}", "POST")[0] == 405


@pytest.mark.parametrize(
    "path",
    ["/voila/files/dashboard.ipynb", "/voila/files/static/shared.js", "/voila/files/../cli/dashboard.py",
     "/voila/static/../../dashboard.py", "/voila/static/%2e%2e/%2e%2e/app.py",
     "/voila/files/%2e%2e/%2e%2e/LICENSE"],
)  # fmt: skip
def test_no_file_of_this_machine_is_served(server: Running, path: str) -> None:
    for token in ("", f"?token={TOKEN}"):
        connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
        connection.request("GET", path + token)  # as it is: urllib would tidy it up
        assert connection.getresponse().status in {403, 404}
        connection.close()


def test_the_login_page_names_no_other_server_and_takes_the_token(server: Running) -> None:
    status, headers, text = answer(server, "/login")
    assert status == 200
    assert "<h1>labkit dashboard</h1>" in text
    assert "http" not in text
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'; script-src 'self' 'nonce-")
    assert "unsafe-eval" not in policy


def test_nothing_that_was_asked_so_far_is_an_error_of_the_server(server: Running) -> None:
    assert "Traceback" not in server.log.read_text()


def test_a_port_that_is_taken_is_named() -> None:
    pytest.importorskip("voila")
    from labstudio.dashboard.server import serve

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is taken. Leave --port out to get a free one"):
            serve("127.0.0.1", port, LONG, open_browser=False)


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    pytest.importorskip("voila")
    with dashboard(tmp_path, tmp_path) as running:
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=60) == 0
        lines = running.log.read_text().splitlines()
    assert len(lines) == 2, lines
    assert lines[0] == f"The dashboard: {running.page}"
