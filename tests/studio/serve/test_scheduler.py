"""Who writes when: in turn, token by token, first come first served, whatever others do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from labkit.generation import Token
from labstudio.serve.scheduler import Job, Scheduler
from labstudio.serve.schemas import ApiError


class Script:
    """Requests that note in which order the model wrote for them; the model waits until it may begin."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.closed: list[str] = []
        self.begin = threading.Event()
        self.threads: set[int] = set()

    def request(self, name: str, length: int, *, fails_at: int | None = None) -> Generator[Token]:
        try:
            for number in range(length):
                self.begin.wait(60)
                self.threads.add(threading.get_ident())
                if number == fails_at:
                    raise ZeroDivisionError(name)
                self.order.append(name)
                yield Token(0, number, name, None, (), None)
        finally:
            self.closed.append(name)


def run(work: Callable[[Scheduler, Script], Awaitable[Any]], active: int = 3, waiting: int = 20) -> Script:
    scheduler, script = Scheduler(active, waiting), Script()
    try:
        asyncio.run(asyncio.wait_for(work(scheduler, script), 60))
    finally:
        script.begin.set()
        scheduler.end(timeout=60)
    return script


async def read(job: Job) -> str:
    try:
        return "".join([token.text async for token in job])
    finally:
        job.close()


def test_active_requests_take_turns_token_by_token() -> None:
    async def work(scheduler: Scheduler, script: Script) -> None:
        jobs = [scheduler.submit(script.request(name, 4), 60) for name in "abc"]
        script.begin.set()
        assert await asyncio.gather(*map(read, jobs)) == ["aaaa", "bbbb", "cccc"]
        assert scheduler.open == 0

    script = run(work)
    assert "".join(script.order) == "abcabcabcabc"
    assert len(script.threads) == 1


def test_a_long_text_does_not_starve_short_ones() -> None:
    """While ten short texts are written, the long one gets its own share of the tokens, and no more."""

    async def work(scheduler: Scheduler, script: Script) -> None:
        jobs = [scheduler.submit(script.request("L", 500), 60)]
        jobs += [scheduler.submit(script.request(str(number), 5), 60) for number in range(10)]
        script.begin.set()
        await asyncio.gather(*map(read, jobs))

    order = "".join(run(work).order)
    last_short = max(order.rindex(str(number)) for number in range(10))
    assert order[: last_short + 1].count("L") <= 5 * 10 / 2 + 5
    assert [order.index(str(number)) for number in range(10)] == sorted(
        order.index(str(n)) for n in range(10)
    )


def test_those_who_wait_follow_in_the_order_in_which_they_came() -> None:
    async def work(scheduler: Scheduler, script: Script) -> None:
        jobs = [scheduler.submit(script.request(name, 2), 60) for name in "abcde"]
        script.begin.set()
        await asyncio.gather(*map(read, jobs))

    assert "".join(run(work, active=1).order) == "aabbccddee"


def test_all_places_taken_is_an_error_and_a_place_left_can_be_had() -> None:
    async def work(scheduler: Scheduler, script: Script) -> None:
        jobs = [scheduler.submit(script.request(name, 3), 60) for name in "ab"]
        with pytest.raises(ApiError) as full:
            scheduler.submit(script.request("c", 3), 60)
        assert full.value.status_code == 429
        jobs[1].close()
        jobs[1].close()  # a second time changes nothing
        assert scheduler.open == 1
        jobs[1] = scheduler.submit(script.request("d", 3), 60)
        script.begin.set()
        assert await asyncio.gather(*map(read, jobs)) == ["aaa", "ddd"]

    assert set(run(work, active=1, waiting=1).order) == {"a", "d"}


def test_who_goes_away_is_written_for_no_more() -> None:
    async def work(scheduler: Scheduler, script: Script) -> None:
        gone = scheduler.submit(script.request("g", 10**9), 60)
        stays = scheduler.submit(script.request("s", 50), 60)
        script.begin.set()
        async for token in gone:
            if token.id == 5:
                break
        gone.close()
        assert await read(stays) == "s" * 50
        while "g" not in script.closed:
            await asyncio.sleep(0.01)

    script = run(work)
    assert script.order.count("s") == 50


def test_a_failure_is_an_error_for_its_own_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def work(scheduler: Scheduler, script: Script) -> None:
        bad = scheduler.submit(script.request("b", 9, fails_at=3), 60)
        good = scheduler.submit(script.request("g", 9), 60)
        script.begin.set()
        with pytest.raises(ApiError) as failed:
            await read(bad)
        assert failed.value.status_code == 503
        assert await read(good) == "g" * 9
        assert await read(scheduler.submit(script.request("n", 2), 60)) == "nn"

    run(work)
    assert "ZeroDivisionError: b" in caplog.text


def test_tokens_wait_for_a_slow_reader_without_holding_up_the_model() -> None:
    async def work(scheduler: Scheduler, script: Script) -> None:
        slow = scheduler.submit(script.request("s", 300), 60)
        script.begin.set()
        await anext(aiter(slow))
        assert await read(scheduler.submit(script.request("q", 300), 60)) == "q" * 300
        while "s" not in script.closed:
            await asyncio.sleep(0.01)
        assert scheduler.open == 1  # its place is taken until it is read
        assert await read(slow) == "s" * 299

    run(work)


@pytest.mark.parametrize("begun", [False, True])
def test_at_the_end_those_who_write_and_those_who_wait_are_told(begun: bool) -> None:
    async def work(scheduler: Scheduler, script: Script) -> None:
        jobs = [scheduler.submit(script.request(name, 10**9), 60) for name in "abc"]
        if begun:
            script.begin.set()
            await anext(aiter(jobs[0]))
        scheduler.drain()
        with pytest.raises(ApiError, match="shutting down"):
            scheduler.submit(script.request("d", 3), 60)
        scheduler.end()
        script.begin.set()
        for job in jobs:
            with pytest.raises(ApiError, match="shutting down"):
                await read(job)

    script = run(work, active=2)
    assert "d" not in script.order
    assert "a" in script.closed or not begun
