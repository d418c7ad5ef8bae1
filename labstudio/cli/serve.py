"""`labkit serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from labstudio.cli.models import choose_device, open_with_tokenizer
from labstudio.cli.options import Number, Text
from labstudio.serve.config import ServeConfig

Checkpoint = Annotated[str | None, tyro.conf.arg(metavar="[CHECKPOINT]", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ServeConfig):
    """Who may connect, and how much may be asked for."""

    def __post_init__(self) -> None:
        """Leave the checks to ServeConfig, once the environment was asked for the token."""


DEFAULTS = ServeOptions()


def serve(
    checkpoint: Positional[Checkpoint] = None,
    settings: OmitArgPrefixes[ServeOptions] = DEFAULTS,
    device: Text = None,
    threads: Number = None,
) -> int:
    """Serve a model to programs that speak to OpenAI's API, and the recorded runs with it.

    The address /docs describes all requests. Ctrl-C stops.

    Args:
        checkpoint: A run's name or folder (`labkit runs`), smollm2, a folder or file of weights, or a
            published model's name; else labkit's own model, under the name shipped.
        device: cpu, cuda or mps; the best there is when not given.
        threads: CPU threads; when not given, one for a small model, else all cores that may be used.
    """
    config = ServeConfig(
        **vars(settings) | {"token": settings.token or os.environ.get("LABKIT_TOKEN") or None}
    )
    try:
        import fastapi  # noqa: F401
        import sse_starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"serve: needs {error.name}. Install it: pip install 'labkit[serve]'") from error

    import secrets

    from labkit.device import hand_over_cores
    from labstudio.serve.app import create_app
    from labstudio.serve.server import Server, address, listen

    made = config.token is None
    if made:
        config = replace(config, token=secrets.token_urlsafe())
    with listen(config) as sock:
        model, tokenizer = open_with_tokenizer("serve", checkpoint or "shipped")
        place = choose_device("serve", device, threads, model.num_parameters())
        name = Path(checkpoint or "shipped").name
        server = Server(create_app(model.to(place), tokenizer, config, name=name))
        hand_over_cores()  # to the thread that will write
        url = address(config, sock)
        print(
            f"{name}: {model.num_parameters():,} parameters, context {model.config.context_length}, {place}"
        )
        print(f"OpenAI's clients: base URL {url}/v1, model {name}. All requests: {url}/docs")
        print(f"Token: {config.token}" if made else "Token: the one you gave.", flush=True)
        server.run_until_stopped([sock])
    return 0
