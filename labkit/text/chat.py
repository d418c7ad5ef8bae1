"""Conversations to ids: the chat template of a published model, rendered and encoded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from labkit.text.tokenizers import Tokenizer

ROLES = ("system", "user", "assistant")
MAX_CHARACTERS = 10_000_000


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids after which the model writes its answer to a conversation.

    messages: such as [{"role": "user", "content": "Hello"}], with the roles system, user and assistant.
    The tokenizer's chat template writes them as one text, special tokens between them, up to the start
    of the answer. It is a program from the model's publisher: it runs in Jinja's sandbox, out of reach of
    files and of Python, and knows neither tools nor the date. The sandbox bounds each loop and we bound
    the text, but not the time: a template that nests loops on purpose still keeps the processor busy.
    Raises ValueError for a tokenizer without a template, messages of another form, content in which a
    special token is spelled out (it could end the message and speak for another role), and a template
    that fails or refuses the conversation.
    Source: the chat templates of Hugging Face's transformers.
    """
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        raise ValueError(
            f"encode_chat: the {tokenizer.name} tokenizer has no chat template; its model was not made for "
            "conversations. Continue a text instead: complete(model, tokenizer, text)."
        )
    if isinstance(messages, str | Mapping) or not messages:
        raise ValueError(
            f'encode_chat: messages={messages!r:.80}; expected [{{"role": ..., "content": ...}}, ...].'
        )
    plain = [_message(tokenizer, number, message) for number, message in enumerate(messages)]
    named = {role: getattr(tokenizer, role, None) for role in ("eos", "bos")}
    text = _render(
        template, plain, {f"{role}_token": token for role, token in named.items() if token is not None}
    )
    return tokenizer.encode(text, allow_special=True)


def _message(tokenizer: Tokenizer, number: int, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f'encode_chat: message {number} is {message!r:.80}; expected "role" and "content".')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(
            f"encode_chat: message {number} has role {role!r:.40}; choose from {', '.join(ROLES)}."
        )
    if not isinstance(content, str):
        raise ValueError(
            f"encode_chat: the content of message {number} is a {type(content).__name__}, not text."
        )
    if found := [token for token in tokenizer.special_tokens if token in content]:
        first = min(found, key=content.index)
        raise ValueError(
            f"encode_chat: message {number} spells out the special token {first!r}, which would end the "
            "message or start another one. Take it out of the content."
        )
    return {"role": role, "content": content}


def _render(template: str, messages: list[dict[str, str]], tokens: Mapping[str, str]) -> str:
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
            raise SecurityError(f"it reaches for {attribute!r}")  # Jinja's own would print nothing

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    def tojson(value: Any, **layout: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False} | layout)

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    sandbox.globals["raise_exception"] = refuse
    sandbox.filters["tojson"] = tojson  # Jinja's own writes for HTML
    pieces, size = [], 0
    try:
        for piece in sandbox.from_string(template).generate(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **tokens
        ):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_CHARACTERS:
                refuse(f"it writes more than {MAX_CHARACTERS:,} characters")
    except Exception as error:  # whatever a program can raise
        raise ValueError(
            f"encode_chat: the chat template fails ({type(error).__name__}: {error})."
        ) from error
    return "".join(pieces)
