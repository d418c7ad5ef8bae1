"""Fair turns: one thread owns the model and generates a token for each request in turn."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator

from labkit.generation import Token
from labstudio.serve.schemas import ApiError, shutting_down, too_many

log = logging.getLogger("labstudio.serve")

_END = object()


class Job:
    """The tokens of one request, in the event loop that asked for them.

    They wait here until they are fetched, so a client that reads slowly does not hold up the model; their
    number is bounded by what a request may ask for.
    """

    def __init__(self, scheduler: Scheduler, tokens: Generator[Token], seconds: float) -> None:
        self.tokens, self.closed = tokens, False
        self._scheduler, self._loop = scheduler, asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._items: asyncio.Queue[object] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Raises ApiError when something went wrong or time is up."""
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    item = await self._items.get()
            except TimeoutError:
                item = None
            if item is None or self._loop.time() > self._deadline:
                raise ApiError(
                    503, "The request took too long and was stopped; ask for fewer tokens.", code="timeout"
                )
            if item is _END:
                return
            if isinstance(item, ApiError):
                raise item
            assert isinstance(item, Token)
            yield item

    def give(self, item: object) -> bool:
        """Hand over a token, the end, or an error; False when nobody waits for it any more."""
        if not self.closed:
            try:
                self._loop.call_soon_threadsafe(self._items.put_nowait, item)
            except RuntimeError:  # the loop was closed
                return False
        return not self.closed

    def close(self) -> None:
        """Free the request's place; the model stops writing for it."""
        self._scheduler.release(self)


class Scheduler:
    """Lets `active` requests write, a token each in turn; `waiting` more follow, first come first served.

    A request's prompt is read, and the first of its texts gets a token, in its first turn.
    """

    def __init__(self, active: int, waiting: int) -> None:
        self.limit, self.places = active, active + waiting
        self.open = 0
        """Requests that were let in and are not closed."""
        self.draining = False
        self._active: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended = False

    def submit(self, tokens: Generator[Token], seconds: float) -> Job:
        """Let a request in, which must be closed.  Raises ApiError when all places are taken."""
        with self._changed:
            if self.draining:
                raise shutting_down()
            if self.open >= self.places:
                raise too_many(f"{self.open} requests are being answered already.")
            self.open += 1
            job = Job(self, tokens, seconds)
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="labkit-serve", daemon=True)
                self._thread.start()
            self._changed.notify()
        return job

    def release(self, job: Job) -> None:
        """Take back a job's place; an active one is dropped at its next turn."""
        with self._changed:
            if not job.closed:
                job.closed = True
                self.open -= 1
                if job in self._waiting:
                    self._waiting.remove(job)

    def drain(self) -> None:
        """Let nobody in any more."""
        self.draining = True

    def end(self, timeout: float = 0) -> None:
        """Stop those that still write, with an error; wait so many seconds until the model rests."""
        self.drain()
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self) -> None:
        advanced: list[Job] = []  # at most one; those who came meanwhile have their turn before it
        while True:
            with self._changed:
                while not (self._ended or self._waiting or self._active or advanced):
                    self._changed.wait()
                if self._ended:
                    break
                while self._waiting and len(self._active) + len(advanced) < self.limit:
                    self._active.append(self._waiting.popleft())
                self._active += advanced
                job = self._active.popleft()
            advanced = [job] if self._advance(job) else []
        for job in [*self._active, *advanced, *self._waiting]:
            job.tokens.close()
            job.give(shutting_down())

    def _advance(self, job: Job) -> bool:
        """Write one more token; False when there is none to come."""
        try:
            if not job.closed and job.give(next(job.tokens)):
                return True
            job.tokens.close()
        except StopIteration:
            job.give(_END)
        except Exception:  # of whatever kind: the others must go on
            log.exception("A request failed while the model wrote.")
            job.give(ApiError(503, "The model failed on this request; see the log.", code="model_failed"))
        return False
