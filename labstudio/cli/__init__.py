"""The command `labkit`. Each subcommand imports what it needs, so that --help is instant."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

import tyro

from labstudio.cli.dashboard import dashboard
from labstudio.cli.evaluate import evaluate
from labstudio.cli.runs import runs
from labstudio.cli.sample import sample
from labstudio.cli.serve import serve
from labstudio.cli.setup import doctor, encode, fetch
from labstudio.cli.sweep import sweep
from labstudio.cli.train import resume, train
from labstudio.cli.weights import export, import_model

app = tyro.extras.SubcommandApp()
for command in (fetch, doctor, encode, train, resume, sample, sweep, export, dashboard, serve):
    app.command(command)
app.command(name="eval")(evaluate)
app.command(name="import")(import_model)
app.command(runs, name="runs", help="List runs, show one, compare several, list checkpoints.")
for point in entry_points(group="labstudio.commands"):  # what other packages add, as the course does
    app.command(point.load(), name=point.name)


def main(args: list[str] | None = None) -> None:
    """Entry point; exits with 0, 1 (a check failed), 2 (bad input) or 130 (interrupted)."""
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="replace")
    try:
        sys.exit(app.cli(prog="labkit", description="Build, train and run your own GPT.", args=args))
    except BrokenPipeError:  # as when `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"labkit: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
