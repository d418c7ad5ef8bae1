"""Requests that nobody sends by mistake: each is answered rightly, and the server goes on answering."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from serving import CHARACTERS, TOKEN, Gate, Running, running, tiny_app, wait_for

AUTHORIZED = f"Authorization: Bearer {TOKEN}"
JSON = "Content-Type: application/json"
LIMIT = 20_000


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server of low limits, which are reached sooner."""
    limits = {"body_bytes": LIMIT, "idle_seconds": 1, "stall_seconds": 1.0}
    with running(tiny_app(**limits, connections=20), send_buffer=4096) as server:
        yield server


@pytest.fixture(autouse=True)
def still_answers(small: Running) -> Iterator[None]:
    yield
    wait_for(lambda: small.service.scheduler.open == 0)
    answer = small.openai().completions.create(model="tiny", prompt="a", max_tokens=2, seed=1)
    assert answer.usage.prompt_tokens == 1


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", "prompt": "abc", "max_tokens": 3} | fields).encode()


def said(connection: socket.socket) -> tuple[int, str]:
    """Status and rest of the answer that comes; 0 where the server says nothing and closes."""
    data = b""
    while b"\r\n\r\n" not in data or b"content-length: 0" not in data.lower():
        try:
            new = connection.recv(65536)
        except ConnectionError:
            break
        data += new
        head, _, rest = data.partition(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not new or (length and len(rest) >= int(length[0].split(b":")[1])):
            break
    text = data.decode(errors="replace")
    return int(text.split(" ")[1]) if text else 0, text


def raw(small: Running, *lines: str, then: bytes = b"") -> tuple[int, str]:
    with small.connect() as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + then)
        return said(connection)


# What the body says

BODIES: dict[str, tuple[bytes, int, str | None]] = {
    "nothing": (b"", 400, None),
    "no JSON": (b"{'model': 1}", 400, None),
    "cut JSON": (body()[:-5], 400, None),
    "deep JSON": (b"[" * 19_000, 400, None),
    "deep objects": (b'{"a":' * 3_000 + b"1" + b"}" * 3_000, 400, None),
    "no UTF-8": (b'{"model": "\xff\xfe"}', 400, None),
    "a list": (b"[1]", 400, None),
    "null": (b"null", 400, None),
    "a number of many digits": (body()[:-1] + b', "seed": ' + b"9" * 5000 + b"}", 400, None),
    "an unknown field": (body(tempreature=1), 400, "tempreature"),
    "many unknown fields": (
        json.dumps({f"x{number}": 0 for number in range(1500)}).encode(), 400, "model",
    ),
    "a negative number": (body(max_tokens=-1), 400, "max_tokens"),
    "NaN": (body(temperature=float("nan")), 400, "temperature"),
    "Infinity": (body(temperature=float("inf")), 400, "temperature"),
    "a huge exponent": (body()[:-1] + b', "temperature": 1e999}', 400, "temperature"),
    "a huge number": (body(temperature=10**300), 400, "temperature"),
    "a huge whole number": (body(max_tokens=10**30), 400, "max_tokens"),
    "true for a number": (body(max_tokens=True), 400, "max_tokens"),
    "text for a number": (body(max_tokens="3"), 400, "max_tokens"),
    "a fraction for a whole number": (body(max_tokens=1.5), 400, "max_tokens"),
    "a billion texts": (body(n=10**9), 400, "n"),
    "a prompt far too long": (body(prompt="a" * 19_000), 400, "prompt"),
    "many prompts": (body(prompt=["a"] * 3_000), 400, "n"),
    "many empty prompts": (body(prompt=[[]] * 3_000), 400, "prompt"),
    "half a UTF-16 pair": (body(prompt="a\ud800"), 400, "prompt"),
    "half a pair as a stop string": (body(stop="\udc00"), 400, "stop"),
    "half a pair as a model": (body(model="\ud800"), 404, "model"),
    "NUL": (body(prompt="a\0b"), 400, "prompt"),
    "unknown characters": (body(prompt="Ω"), 400, "prompt"),
    "ids outside the vocabulary": (body(prompt=[0, CHARACTERS.vocab_size]), 400, "prompt"),
    "negative ids": (body(prompt=[-1]), 400, "prompt"),
    "huge ids": (body(prompt=[2**70]), 400, "prompt"),
    "true as an id": (body(prompt=[True]), 400, "prompt"),
    "a tiny temperature": (body(temperature=5e-324), 400, "temperature"),
    "a field twice: the last one counts": (body()[:-1] + b', "max_tokens": 2}', 200, None),
    "another model": (body(model="../../etc/passwd"), 404, "model"),
    "one byte too many": (body().ljust(LIMIT + 1), 413, None),
    "as many bytes as may be": (body().ljust(LIMIT), 200, None),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_bodies(small: Running, name: str) -> None:
    content, status, param = BODIES[name]
    with small.http() as client:
        answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    if status != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param
        assert len(error["message"]) < 500


@pytest.mark.parametrize(
    "kind",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x/json"],
)
def test_a_body_of_another_type_is_not_read(small: Running, kind: str | None) -> None:
    with small.http() as client:
        headers = {"Content-Type": kind} if kind else {}
        assert client.post("/v1/completions", content=body(), headers=headers).status_code == 415
        packed = {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": "gzip"}
        assert client.post("/v1/completions", content=body(), headers=packed).status_code == 415


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused_and_not_kept(small: Running, chunked: bool) -> None:
    size = 30_000_000
    pieces = (b"x" * 100_000 for _ in range(size // 100_000))
    headers = {"Content-Type": "application/json"}
    if not chunked:
        headers["Content-Length"] = str(size)
    with small.http() as client:
        answer = client.post("/v1/completions", content=pieces, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_connection_that_brings_no_further_request_is_closed(small: Running) -> None:
    with small.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert said(connection)[0] == 200
        assert connection.recv(100) == b""


# Tokens and addresses


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Authorization: Bearer wrong-token-of-somebody"],
        [f"Authorization: Bearer {TOKEN}x"],
        [f"Authorization: Bearer {TOKEN[:-1]}"],
        ["Authorization: Bearer "],
        ["Authorization: Bearer"],
        [f"Authorization: Basic {TOKEN}"],
        [f"Authorization: {TOKEN}"],
        [AUTHORIZED, AUTHORIZED],
        ["Authorization: Bearer wrong-token-of-somebody", AUTHORIZED],
        ["Authorization: Bearer \xff\xfe"],
        [f"X-Api-Key: {TOKEN}"],
        [f"Cookie: token={TOKEN}"],
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/models", "/runs", "/runs/x/metrics", "/nothing", f"/v1/models?token={TOKEN}"]
)
def test_without_the_token_nothing_is_told(small: Running, lines: list[str], path: str) -> None:
    status, text = raw(small, f"GET {path} HTTP/1.1", "Host: localhost", *lines)
    assert status == 401
    assert "www-authenticate: bearer" in text.lower()
    assert TOKEN not in text


def test_without_the_token_no_body_is_read(small: Running) -> None:
    head = ["POST /v1/completions HTTP/1.1", "Host: localhost", JSON, "Content-Length: 1000000"]
    assert raw(small, *head)[0] == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_written_in_any_case(small: Running, scheme: str) -> None:
    authorized = f"Authorization: {scheme} {TOKEN}"
    assert raw(small, "GET /v1/models HTTP/1.1", "Host: localhost", authorized)[0] == 200


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json"])
def test_what_tells_nothing_of_this_machine_needs_no_token(small: Running, path: str) -> None:
    status, text = raw(small, f"GET {path} HTTP/1.1", "Host: localhost")
    assert status == 200
    assert "tiny" not in text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:1", 200), ("[::1]:5", 200),
        ("evil.example", 400), ("localhost.evil.example", 400), ("127.0.0.1.evil.example:8000", 400),
        ("evil.example:127.0.0.1", 400), ("", 400), ("localhost@evil.example", 400),
    ],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(small: Running, host: str, status: int) -> None:
    found, text = raw(small, "GET /v1/models HTTP/1.1", f"Host: {host}", AUTHORIZED)
    assert found == status, text


def test_pages_of_others_are_not_let_in(small: Running) -> None:
    with small.http(headers={"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}) as client:
        for answer in (client.get("/v1/models"), client.options("/v1/models")):
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.status_code == 405


# HTTP


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET", "HEAD", "BREW"])
def test_other_methods_are_refused(small: Running, method: str) -> None:
    status, text = raw(small, f"{method} /v1/completions HTTP/1.1", "Host: localhost", AUTHORIZED)
    assert status == 405
    assert "allow: post" in text.lower()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", 400),  # TLS
        (b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"\0" * 200_000, 400),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
            400,
        ),  # a flood of headers
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 6\r\n\r\n", 400),
    ],
)
def test_what_is_no_http_is_refused(small: Running, data: bytes, status: int) -> None:
    with small.connect() as connection:
        try:
            connection.sendall(data)
        except ConnectionError:
            return  # cut off while it still talked
        assert said(connection)[0] in (status, 0)


def test_more_connections_than_allowed_are_turned_away(small: Running) -> None:
    idle = [small.connect() for _ in range(25)]
    try:
        assert raw(small, "GET /health HTTP/1.1", "Host: localhost")[0] == 503
    finally:
        for connection in idle:
            connection.close()
    wait_for(lambda: raw(small, "GET /health HTTP/1.1", "Host: localhost")[0] == 200)


# Clients that go away, and clients that do not read


def stream_head(**fields: Any) -> bytes:
    content = body(stream=True, **fields)
    head = ["POST /v1/completions HTTP/1.1", "Host: localhost", AUTHORIZED, JSON]
    return "\r\n".join([*head, f"Content-Length: {len(content)}", "", ""]).encode() + content


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_written_for_no_more(small: Running, gate: Gate, stream: bool) -> None:
    with small.connect() as connection:
        connection.sendall(stream_head(max_tokens=2000, seed=3).replace(b'"stream": true', b'"stream":%5s' % (
            b"true" if stream else b"false")))  # fmt: skip
        gate.let(3)
        wait_for(lambda: gate.started == 1)
        assert small.service.scheduler.open == 1
    wait_for(lambda: small.service.scheduler.open == 0)
    gate.let(3)  # one for the token that it was waiting for
    wait_for(lambda: gate.closed == 1)
    gate.let(10**6)


def test_a_client_that_never_reads_holds_up_nobody_and_is_cut_off(small: Running) -> None:
    with small.connect(buffer=4096) as connection:
        connection.sendall(stream_head(max_tokens=500, n=16, logprobs=5, temperature=0))
        wait_for(lambda: small.service.scheduler.open == 1)
        other = small.openai().completions.create(model="tiny", prompt="abc", max_tokens=20, seed=1)
        assert other.choices[0].text
        wait_for(lambda: small.service.scheduler.open == 0)  # after stall_seconds
        data = b""
        while new := connection.recv(65536):
            data += new
        assert b'"text"' in data
        assert b"[DONE]" not in data
