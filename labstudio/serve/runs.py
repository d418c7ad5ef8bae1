"""GET /runs…: the training runs on this machine, also while they are written."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path
from starlette.responses import Response

from labkit.training import Run, list_runs
from labstudio.serve.documented import EVENT, errors
from labstudio.serve.errors import ApiError, shutting_down, too_many
from labstudio.serve.replies import EventStream, JSONReply, sse
from labstudio.serve.schemas import RunDetails, RunList, SampleList
from labstudio.serve.service import Service

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
CHUNK = 2**16

RunId = Annotated[str, Path(description="The run's name, as `GET /runs` lists it.", examples=["first"])]
LastEvent = Annotated[
    str | None, Header(description="id of the last event that was received; what follows it is sent.")
]
EVENTS = """id: 129304-172
data: {"event": "step", "step": 1, "loss": 4.1, "learning_rate": 0.001, "grad_norm": 1.2, "tokens": 768}

event: end
data: {"state": "finished"}

"""


def runs_router(service: Service) -> APIRouter:
    """The operations."""
    router = APIRouter(tags=["runs"])

    @router.get(
        "/runs", summary="List the runs", responses={200: {"model": RunList}, **errors(400, 401, 503)}
    )
    async def list_all() -> Response:
        """List the training runs, oldest first, and how far each has come."""
        return JSONReply({"object": "list", "data": await asyncio.to_thread(_summaries, None)})

    @router.get(
        "/runs/{run_id}",
        summary="Show a run",
        responses={200: {"model": RunDetails}, **errors(400, 401, 404, 503)},
    )
    async def show(run_id: RunId) -> Response:
        """Tell how far a run has come, and what it was started with."""
        return JSONReply(await asyncio.to_thread(_details, run_id))

    @router.get(
        "/runs/{run_id}/samples",
        summary="Show what a run wrote",
        responses={200: {"model": SampleList}, **errors(400, 401, 404, 503)},
    )
    async def samples(run_id: RunId) -> Response:
        """List the texts that the model wrote while it was trained."""
        return JSONReply({"object": "list", "data": await asyncio.to_thread(_samples, run_id)})

    @router.get(
        "/runs/{run_id}/metrics",
        summary="Follow a run",
        responses={
            200: {
                "description": "Server-sent events.",
                "content": {"text/event-stream": {"schema": EVENT, "example": EVENTS}},
            },
            **errors(400, 401, 404, 429, 503),
        },
        response_class=Response,
    )
    async def metrics(run_id: RunId, last_event_id: LastEvent = None) -> Response:
        """Send the run's rows, all so far and then new ones as they are written, one event each.

        An event `end` closes the stream of a finished run; that of a stopped one stays open, since it may be
        resumed. When a resumed run drops the rows of steps that it takes again, an event `rewind` says so and
        all rows follow anew.
        """
        tail = Tail(await asyncio.to_thread(_find, run_id), last_event_id)
        if service.scheduler.draining:
            raise shutting_down()
        if service.followers >= service.config.followers:
            raise too_many(f"{service.followers} clients are following runs already.")
        return EventStream(_follow(tail, service))

    return router


async def _follow(tail: Tail, service: Service) -> AsyncGenerator[bytes]:
    service.followers += 1
    now = asyncio.get_running_loop().time
    try:
        said, finished = now(), False
        yield sse(comment="the rows of a run")
        while True:
            rewound, rows = await asyncio.to_thread(tail.read)
            if rewound:
                yield sse({}, event="rewind")
            for name, row in rows:
                yield sse(row, id=name)
            if service.scheduler.draining:
                yield sse(shutting_down().content(), event="error")
                return
            if rows:
                said, finished = now(), False
                continue
            if finished:  # and no row came since
                yield sse({"state": "finished"}, event="end")
                return
            if finished := await asyncio.to_thread(tail.finished):
                continue
            if now() - said > HEARTBEAT_SECONDS:
                said = now()
                yield sse(comment="nothing new")
            await asyncio.sleep(POLL_SECONDS)
    finally:
        service.followers -= 1


class Tail:
    """Reads a run's metrics from where the last reading ended.

    The name of a row is the file's number and where the row ends: a resumed run replaces the file.
    """

    def __init__(self, run: Run, after: str | None) -> None:
        self.run, self.path = run, run.path / "metrics.jsonl"
        self.file, self.offset = 0, 0
        numbers = (after or "").split("-")
        if len(numbers) == 2 and all(
            each.isascii() and each.isdigit() and len(each) < 20 for each in numbers
        ):
            self.file, self.offset = map(int, numbers)

    def read(self) -> tuple[bool, list[tuple[str, dict[str, Any]]]]:
        """The next rows with their names, and whether they begin anew; none when there is nothing new."""
        if not self.path.is_file():
            return False, []
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            rewound = bool(self.offset) and (about.st_ino != self.file or about.st_size < self.offset)
            self.file, self.offset = about.st_ino, 0 if rewound else self.offset
            file.seek(self.offset)
            data = file.read(CHUNK) + file.readline()
        rows = []
        for line in data.split(b"\n")[:-1]:
            self.offset += len(line) + 1
            if (row := _row(line)) is not None:
                rows.append((f"{self.file}-{self.offset}", row))
        return rewound, rows

    def finished(self) -> bool:
        """Whether the last row is the evaluation after the last step, with which every training ends."""
        try:
            with self.path.open("rb") as file:
                file.seek(-min(CHUNK, file.seek(0, os.SEEK_END)), os.SEEK_END)
                last = _row(file.read().rstrip().rpartition(b"\n")[2]) or {}
            return last.get("event") == "evaluation" and last.get("step") == self.run.config()["total_steps"]
        except (OSError, ValueError, KeyError):
            return False


def _row(line: bytes) -> dict[str, Any] | None:
    """A row as JSON can hold it: null for what is no number.  None for a damaged line."""
    try:
        row = json.loads(line, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _runs() -> dict[str, Run]:
    try:
        return {run.id: run for run in list_runs()}
    except OSError as error:  # one was renamed or deleted while we looked
        raise ApiError(503, "The runs are being changed; ask again.", code="try_again") from error


def _find(run_id: str) -> Run:
    """A run by a name that `list_runs` gives: what the client sends never becomes a path."""
    run = _runs().get(run_id)
    if run is None:
        raise ApiError(
            404, "There is no such run; GET /runs lists them.", param="run_id", code="run_not_found"
        )
    return run


def _summaries(run: Run | None) -> list[dict[str, Any]]:
    from labstudio.runs import runs_table

    table = runs_table(_runs().values() if run is None else [run])
    return [_plain(row) for row in table.to_dict("records")]


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    import pandas as pd

    values = {name: None if pd.isna(value) else value for name, value in row.items()}
    started = values.pop("started")
    return {"id": values.pop("run"), "started": started and started.isoformat(), **values}


def _details(run_id: str) -> dict[str, Any]:
    run = _find(run_id)
    try:
        config = _row(json.dumps(run.config()).encode())
    except (OSError, ValueError):
        config = None
    return {**_summaries(run)[0], "config": config}


def _samples(run_id: str) -> list[dict[str, Any]]:
    rows = _find(run_id).rows("samples")
    return [{name: row.get(name) for name in ("step", "prompt", "text")} for row in rows]
