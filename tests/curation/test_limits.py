"""Pace, backoff and breaker on a clock of their own: no test here waits."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left
from email.utils import formatdate

import pytest

from xraygpt.curation import limits
from xraygpt.curation.limits import Breaker, Pace, Patience, retry_after


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.0)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(limits, "time", found)
    monkeypatch.setattr(limits.asyncio, "sleep", found.sleep)
    return found


async def starts(pace: Pace, clock: Clock, sizes: list[int]) -> list[tuple[float, int]]:
    found = []
    for size in sizes:
        await pace.wait(size)
        found.append((clock.now, size))
    return found


def most_in_a_minute(found: list[tuple[float, int]], weigh) -> float:
    times = [time for time, _ in found]
    sums = [0, *itertools.accumulate(weigh(size) for _, size in found)]
    return max(sums[bisect_left(times, t + 60)] - sums[bisect_left(times, t)] for t in times)


@pytest.mark.parametrize(("rpm", "tpm"), [(600, None), (None, 60_000), (600, 30_000)])
def test_both_limits_hold_in_every_minute_and_are_used_up(clock, rpm, tpm):
    sizes = [50 + 37 * i % 100 for i in range(2500)]
    found = asyncio.run(starts(Pace(rpm, tpm), clock, sizes))
    requests, tokens = most_in_a_minute(found, lambda _: 1), most_in_a_minute(found, int)
    shares = [n / limit for n, limit in ((requests, rpm), (tokens, tpm)) if limit]
    assert all(share <= 1.02 for share in shares)
    assert max(shares) >= 0.98


def test_tokens_that_were_not_used_are_given_back(clock):
    pace = Pace(None, 6000)

    async def work() -> None:
        for _ in range(100):
            await pace.wait(1000)
            pace.settle(1000, 100)

    asyncio.run(work())
    assert clock.now - 1000 == pytest.approx(100, rel=0.02)  # 10,000 tokens at 100 a second


def test_a_pause_holds_everybody(clock):
    pace = Pace(None, None)
    pace.pause(7)
    asyncio.run(pace.wait(1))
    assert clock.now == 1007


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": formatdate(1030.0, usegmt=True)}, 30),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-4"}, 0),
        ({}, None),
    ],
)
def test_retry_after_in_each_of_its_forms(clock, headers, seconds):
    assert retry_after(headers) == (
        seconds if seconds is None else pytest.approx(seconds, abs=1e-6)
    )


def test_backoff_doubles_with_jitter_up_to_its_cap():
    patience = Patience(first_wait=1, longest_wait=10)
    for attempt, longest in enumerate((1, 2, 4, 8, 10, 10)):
        drawn = [patience.wait(attempt) for _ in range(200)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
        assert len(set(drawn)) > 100


def test_the_breaker_opens_lets_one_try_and_gives_up(clock, monkeypatch):
    async def wait_for(waited, seconds: float) -> None:
        waited.close()
        await clock.sleep(seconds)
        raise TimeoutError

    async def work() -> None:
        monkeypatch.setattr(limits.asyncio, "wait_for", wait_for)
        breaker = Breaker(failures=3, cooldown=20, openings=2)
        for _ in range(2):
            breaker.failed("a")
        breaker.succeeded()
        for _ in range(3):
            breaker.failed("HTTP 500")
        begun = clock.now
        for _ in range(50):
            breaker.failed("late")  # calls that were under way do not count again
        assert not breaker.gave_up
        assert await breaker.ready()
        assert clock.now - begun == pytest.approx(20)
        breaker.failed("late")
        assert not breaker.gave_up
        breaker.failed("HTTP 502", trial=True)
        assert breaker.gave_up
        assert breaker.reason == "HTTP 502"

    asyncio.run(work())


def test_a_trial_that_was_not_made_lets_the_next_one_try(clock):
    async def work() -> None:
        breaker = Breaker(failures=1, cooldown=0)
        breaker.failed("x")
        assert await breaker.ready()
        breaker.withdraw()
        assert await breaker.ready()

    asyncio.run(work())


def test_after_a_pause_calls_start_in_turn_again(clock):
    """Everybody waits for the end of the pause; they must not all start at once then."""

    async def work() -> list[float]:
        pace, begun = Pace(600, None), []
        pace.pause(30)

        async def one() -> None:
            await pace.wait(1)
            begun.append(clock.now)

        await asyncio.gather(*(one() for _ in range(100)))
        return begun

    begun = asyncio.run(work())
    assert min(begun) == 1030
    assert max(begun) - 1030 == pytest.approx(10, abs=1)  # 100 calls at 10 a second


def test_a_success_closes_the_breaker_for_all(clock):
    async def work() -> None:
        breaker = Breaker(failures=1, cooldown=0)
        breaker.failed("x")
        await breaker.ready()
        breaker.succeeded()
        for _ in range(5):
            await breaker.ready()
        assert not breaker.gave_up

    asyncio.run(work())
