"""`labkit dashboard`."""

from __future__ import annotations

import os
import secrets
import string
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from labstudio.cli.options import Number, Switch, Text

Folder = Annotated[Path | None, tyro.conf.arg(metavar="[RUNS]", help_behavior_hint="")]

SHORTEST_TOKEN = 16
_TOKEN_CHARACTERS = set(string.ascii_letters + string.digits + "-_.~")  # need no escaping in an address

_PUBLIC = (
    "dashboard: --public lets other machines reach this page, so it needs a token of your own: --token, or "
    "the variable LABKIT_TOKEN. Anyone with the token who reaches the port can start trainings and read the "
    "models and texts of this machine with your rights, and the connection is not encrypted. An SSH tunnel "
    "is safer: run `labkit dashboard --port 8900` here, `ssh -L 8900:127.0.0.1:8900 THIS-MACHINE` there, and "
    "open the printed address there."
)


def dashboard(
    runs: Positional[Folder] = None,
    port: Number = None,
    token: Text = None,
    public: Switch = False,
    browser: Switch = True,
) -> int:
    """Look at runs in a browser: compare them, follow and start trainings, try checkpoints.

    Only this machine can open the page, and its address carries a token. Anyone with the token can start,
    stop and resume trainings, try every model in the folder, and through a training read any text that you
    can read; they cannot run programs of their own. Ctrl-C ends the dashboard (exit code 0); trainings that
    it started continue.

    Args:
        runs: Folder of runs; the one that `labkit train` writes to when not given.
        port: A free one when not given.
        token: At least 16 letters, digits, -, _, . or ~; a new one when not given. Others on this machine
            see a command's options: the variable LABKIT_TOKEN is safer.
        public: Let other machines reach the page, without encryption; needs a token of your own.
        browser: Leave the browser closed; open the printed address yourself.
    """
    token = os.environ.pop("LABKIT_TOKEN", "") or None if token is None else token
    if public and token is None:
        raise ValueError(_PUBLIC)
    if token is not None and (len(token) < SHORTEST_TOKEN or not set(token) <= _TOKEN_CHARACTERS):
        raise ValueError(
            f"dashboard: the token has {len(token)} characters; it needs at least {SHORTEST_TOKEN}, of "
            "letters, digits, -, _, . and ~. Leave it out to get a new one."
        )
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"dashboard: port={port} must be from 1 to 65535.")
    if runs is not None and not runs.is_dir():
        raise ValueError(f"dashboard: there is no folder {str(runs)!r}. `labkit train` makes runs.")

    from labkit.io import output_dir, runs_dir
    from labstudio.dashboard.server import serve

    folder = runs_dir() if runs is None else runs.resolve()
    os.environ |= {
        "LABKIT_RUNS": str(folder),
        "LABKIT_OUT": str(output_dir()),
        "LABKIT_HOME": str(Path.cwd()),
    }
    serve(
        "0.0.0.0" if public else "127.0.0.1", port, token or secrets.token_urlsafe(24), open_browser=browser
    )
    return 0
