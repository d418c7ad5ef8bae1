"""Import is cheap: what costs time is loaded where it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "matplotlib", "pandas", "IPython", "ipywidgets", "jupyterlab", "transformers")


def loaded_after(code: str) -> set[str]:
    """Which heavy modules a fresh Python has loaded after running the code."""
    report = f"\nimport sys; print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_import_labkit_loads_nothing_heavy() -> None:
    assert loaded_after("import labkit") == set()


COMMANDS = [
    "fetch",
    "doctor",
    "encode",
    "train",
    "resume",
    "sample",
    "progress",
    "sweep",
    "export",
    "import",
    "runs",
]
COMMANDS += ["dashboard", "eval", "serve", "runs list", "runs show", "runs compare", "runs checkpoints"]


def test_the_list_of_commands_is_whole() -> None:
    from labstudio.cli import app

    assert {name.split()[0] for name in COMMANDS} == set(app._subcommands)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    arguments = [*command.split(), "--help"]
    code = f"""
import contextlib, sys
sys.argv = ["labkit", *{arguments!r}]
from labstudio.cli import main
with contextlib.suppress(SystemExit):
    main()
"""
    assert loaded_after(code) == set()


def test_the_library_needs_no_screen() -> None:
    code = "import labkit.text, labkit.model, labkit.generation, labkit.training, labkit.analysis"
    assert loaded_after(code) <= {"torch"}


def test_public_names_load_on_first_use() -> None:
    code = "import labkit\nfor name in labkit.__all__: getattr(labkit, name)"
    assert "torch" in loaded_after(code)


def test_one_thread_as_in_the_lessons() -> None:
    import torch

    assert torch.get_num_threads() == 1
