"""GET /runs…: the training runs on this machine, also while they are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path
from starlette.responses import Response

from labkit.io import Tail
from labkit.training import Run, list_runs
from labstudio.serve.schemas import (
    ApiError,
    JSONReply,
    RunDetails,
    RunList,
    SampleList,
    error_responses,
    event_stream_response,
    shutting_down,
    to_json,
    too_many,
)
from labstudio.serve.service import Service

POLL_SECONDS = 0.5
CHUNK = 2**16

RunId = Annotated[str, Path(description="The run's name, as `GET /runs` lists it.", examples=["first"])]
LastEvent = Annotated[
    str | None, Header(description="id of the last event that was received; what follows it is sent.")
]
EVENTS = """id: 172-5d0c2f1e
data: {"event": "step", "step": 1, "loss": 4.1, "learning_rate": 0.001, "grad_norm": 1.2, "tokens": 768}

event: end
data: {"state": "finished"}

"""


def runs_router(service: Service) -> APIRouter:
    """The operations."""
    router = APIRouter(tags=["runs"], responses=error_responses(503))

    @router.get("/runs", summary="List the runs", response_model=RunList)
    async def list_all() -> Response:
        """List the training runs, oldest first, and how far each has come."""
        return JSONReply({"object": "list", "data": await asyncio.to_thread(_summaries, None)})

    missing = error_responses(404)

    @router.get("/runs/{run_id}", summary="Show a run", response_model=RunDetails, responses=missing)
    async def show(run_id: RunId) -> Response:
        """Tell how far a run has come, and what it was started with."""
        return JSONReply(await asyncio.to_thread(_details, run_id))

    @router.get(
        "/runs/{run_id}/samples",
        summary="Show what a run wrote",
        response_model=SampleList,
        responses=missing,
    )
    async def samples(run_id: RunId) -> Response:
        """List the texts that the model wrote while it was trained."""
        return JSONReply({"object": "list", "data": await asyncio.to_thread(_samples, run_id)})

    @router.get(
        "/runs/{run_id}/metrics",
        summary="Follow a run",
        responses={
            200: event_stream_response("Server-sent events.", EVENTS),
            **error_responses(404, 429),
        },
        response_class=Response,
    )
    async def metrics(run_id: RunId, last_event_id: LastEvent = None) -> Response:
        """Send the run's rows, all so far and then new ones as they are written, one event each.

        An event `end` closes the stream of a finished run; that of a stopped one stays open, since it may be
        resumed. When a resumed run drops the rows of steps that it takes again, an event `rewind` says so and
        all rows follow anew.
        """
        run = await asyncio.to_thread(_find, run_id)
        if service.scheduler.draining:
            raise shutting_down()
        if service.followers >= service.config.followers:
            raise too_many(f"{service.followers} clients are following runs already.")
        return service.event_stream(_events(run, last_event_id or "", service))

    return router


async def _events(run: Run, position: str, service: Service) -> AsyncGenerator[dict[str, str]]:
    path = run.path / "metrics.jsonl"
    tail, last = Tail(path, position), {}
    service.followers += 1
    try:
        if position:  # which may be that of the last row
            known, _ = await asyncio.to_thread(Tail(path).new_rows)
            last = known[-1].values if known else {}
        while True:
            rows, restarted = await asyncio.to_thread(tail.new_rows, CHUNK)
            if restarted:
                last = {}
                yield {"event": "rewind", "data": "{}"}
            for row in rows:
                last = row.values
                yield {"id": row.position, "data": to_json(last)}
            if service.scheduler.draining:
                raise shutting_down()
            if rows:
                continue
            if last.get("event") == "evaluation" and await asyncio.to_thread(_is_final, run, last):
                yield {"event": "end", "data": '{"state":"finished"}'}
                return
            await asyncio.sleep(POLL_SECONDS)
    except OSError as error:
        unreadable = ApiError(503, f"The run cannot be read: {error.strerror}.", code="unreadable")
        yield {"event": "error", "data": to_json(unreadable.content())}
    except ApiError as error:
        yield {"event": "error", "data": to_json(error.content())}
    finally:
        service.followers -= 1


def _is_final(run: Run, evaluation: dict[str, Any]) -> bool:
    """Whether an evaluation is the one after the last step, with which every training ends."""
    try:
        return evaluation.get("step") == run.config()["total_steps"]
    except (OSError, ValueError, KeyError):
        return False


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
        config = run.config()
    except (OSError, ValueError):
        config = None
    return {**_summaries(run)[0], "config": config}


def _samples(run_id: str) -> list[dict[str, Any]]:
    rows = _find(run_id).rows("samples")
    return [{name: row.get(name) for name in ("step", "prompt", "text")} for row in rows]
