"""Executes the lessons in order and writes their outputs into them: `make notebooks`.

Give notebook paths to execute only those. This is the one thing that renews the committed outputs, the
figures, experiments_log.md and learning_journal.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 600
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class LessonError(RuntimeError):
    """A lesson did not run to its end."""


def execute(path: Path) -> None:
    """Run every cell of one notebook and replace the file, once all of them succeeded.

    Raises LessonError naming notebook and cell, the file untouched.
    """
    notebook = nbformat.read(path, as_version=4)
    client = _Client(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise LessonError(f"{path.name}, cell {client.at}: {error.ename}: {error.evalue}\n{error}") from error
    except CellTimeoutError as error:
        raise LessonError(f"{path.name}, cell {client.at}: ran longer than {CELL_TIMEOUT} s") from error
    except DeadKernelError as error:
        raise LessonError(f"{path.name}, cell {client.at}: the kernel died (out of memory?)") from error
    clean(notebook)
    nbformat.validate(notebook)
    _replace_file(path, nbformat.writes(notebook).rstrip("\n") + "\n")


class _Client(NotebookClient):
    """Remembers which cell it is at, for the error message."""

    at = 0

    async def async_execute_cell(
        self, cell: NotebookNode, cell_index: int, **options: object
    ) -> NotebookNode:
        self.at = cell_index
        return await super().async_execute_cell(cell, cell_index, **options)


def clean(notebook: NotebookNode) -> None:
    """Drop what differs from run to run and says nothing: timestamps, versions, ids of widgets."""
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
    )
    for cell in notebook.cells:
        for noise in ("execution", "collapsed", "scrolled", "ExecuteTime"):
            cell.metadata.pop(noise, None)
        if cell.cell_type == "code":
            cell.outputs = _merged_streams(cell.outputs)
            for output in cell.outputs:
                # Without its state a widget cannot be shown; its plain text and the static cell after it can.
                output.get("data", {}).pop(WIDGET_VIEW, None)


def _merged_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join pieces of one stream, which arrive split up differently each time."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _replace_file(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """Execute the notebooks given, or all; returns the exit code."""
    paths = [Path(argument).resolve() for argument in arguments] or sorted(
        (ROOT / "notebooks").glob("*.ipynb")
    )
    if missing := [path for path in paths if not path.is_file()]:
        print(f"There is no notebook {missing[0]}.", file=sys.stderr)
        return 2
    os.environ.pop("LABKIT_OUT", None)
    os.environ |= {
        "LABKIT_PROFILE": "lesson",
        "LABKIT_LIVE": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as profile:
        os.environ["IPYTHONDIR"] = profile
        for number, path in enumerate(paths, 1):
            print(f"[{number}/{len(paths)}] {path.name} ", end="", flush=True)
            start = time.monotonic()
            try:
                execute(path)
            except LessonError as error:
                print(f"failed\n{error}", file=sys.stderr)
                return 1
            print(f"{time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
