"""A server on a free port in a thread of its own, and models small enough to answer at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import torch
from fastapi import FastAPI

from labkit import GPT, GPTConfig
from labkit.text import CharTokenizer, HFTokenizer, tokenizer_from_gguf
from labkit.text.bpe import _printable_bytes
from labstudio.serve.app import create_app
from labstudio.serve.config import ServeConfig
from labstudio.serve.server import Server, listen

TOKEN = "a-token-of-the-tests"
CHARACTERS = CharTokenizer("\n abcdefghij.é日🙂")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} {{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
CONTEXT = 41


def tiny_model(vocab_size: int, seed: int = 0) -> GPT:
    """A model of random weights so large that every token counts."""
    torch.manual_seed(seed)
    shape = {"context_length": CONTEXT, "d_model": 12, "n_layers": 2, "n_heads": 3}
    model = GPT(GPTConfig(vocab_size=vocab_size, **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def chat_tokenizer() -> HFTokenizer:
    """Byte-level, with a chat template."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_printable_bytes().values(), "Ġt", "he", "Ġthe"]
    metadata = {
        "ggml.model": "gpt2",
        "ggml.pre": "smollm",
        "ggml.tokens": tokens,
        "ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "ggml.merges": ["Ġ t", "h e", "Ġt he"],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "chat_template": TEMPLATE,
    }
    return tokenizer_from_gguf({f"tokenizer.{key}": value for key, value in metadata.items()})


def tiny_app(**settings: Any) -> FastAPI:
    """Serves a model of characters as "tiny"."""
    config = ServeConfig(**{"port": 0, "token": TOKEN} | settings)
    return create_app(tiny_model(CHARACTERS.vocab_size), CHARACTERS, config, name="tiny")


class Running:
    """A server that runs, and clients of it."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self.app, self.service, self.port = app, app.state.service, port
        self.url = f"http://127.0.0.1:{port}"
        unpooled = httpx.Limits(max_keepalive_connections=0)  # the server may just be closing an idle one
        self._client = openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=TOKEN,
            max_retries=0,
            timeout=120,
            http_client=httpx.Client(verify=False, limits=unpooled),
        )

    def openai(self, **settings: Any) -> openai.OpenAI:
        """OpenAI's client; it asks once."""
        return self._client.with_options(**settings)

    def http(self, **settings: Any) -> httpx.Client:
        """A plain client that brings the token."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.Client(**{"base_url": self.url, "headers": headers, "timeout": 120} | settings)

    def connect(self, *, buffer: int | None = None) -> socket.socket:
        """A bare connection; buffer: how many bytes it takes without being read."""
        connection = socket.socket()
        connection.settimeout(120)
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.connect(("127.0.0.1", self.port))
        return connection


@contextmanager
def running(app: FastAPI, *, send_buffer: int | None = None) -> Iterator[Running]:
    """Serve it; afterwards the server ends as it does when it is told to stop."""
    server = Server(app)
    with listen(app.state.service.config) as sock:
        if send_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Running(app, sock.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Wait until it holds."""
    waiting = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        waiting.wait(0.02)
    raise AssertionError("it did not come to hold")


class Gate:
    """Stands in for `stream_tokens`: its tokens pass only as the test lets them."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.tokens = threading.Semaphore(0)
        self.started = self.closed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._gated(self.original(*args, **kwargs))

    def _gated(self, tokens: Any) -> Any:
        self.started += 1
        try:
            for token in tokens:
                self.tokens.acquire()
                yield token
        finally:
            self.closed += 1

    def let(self, count: int) -> None:
        """Let so many more tokens pass."""
        self.tokens.release(count)
