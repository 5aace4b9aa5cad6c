"""Rate limiter, backoff and circuit breaker, with a simulated clock."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left
from email.utils import formatdate

import pytest

from xraygpt.curation.llm import limits
from xraygpt.curation.llm.limits import (
    CircuitBreaker,
    RateLimiter,
    RetryPolicy,
    parse_retry_after,
)


class Clock:
    """A clock that advances only in `sleep`."""

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
    simulated = Clock()
    monkeypatch.setattr(limits, "time", simulated)
    monkeypatch.setattr(limits.asyncio, "sleep", simulated.sleep)
    return simulated


async def start_requests(
    limiter: RateLimiter, clock: Clock, sizes: list[int]
) -> list[tuple[float, int]]:
    starts = []
    for size in sizes:
        await limiter.acquire(size)
        starts.append((clock.now, size))
    return starts


def max_per_minute(starts: list[tuple[float, int]], weigh) -> float:
    times = [time for time, _ in starts]
    sums = [0, *itertools.accumulate(weigh(size) for _, size in starts)]
    return max(sums[bisect_left(times, t + 60)] - sums[bisect_left(times, t)] for t in times)


@pytest.mark.parametrize(("rpm", "tpm"), [(600, None), (None, 60_000), (600, 30_000)])
def test_both_limits_are_kept_in_every_minute_and_used_fully(clock, rpm, tpm):
    sizes = [50 + 37 * i % 100 for i in range(2500)]
    starts = asyncio.run(start_requests(RateLimiter(rpm, tpm), clock, sizes))
    requests, tokens = max_per_minute(starts, lambda _: 1), max_per_minute(starts, int)
    fractions = [n / limit for n, limit in ((requests, rpm), (tokens, tpm)) if limit]
    assert all(fraction <= 1.02 for fraction in fractions)
    assert max(fractions) >= 0.98


def test_unused_tokens_are_returned(clock):
    limiter = RateLimiter(None, 6000)

    async def work() -> None:
        for _ in range(100):
            await limiter.acquire(1000)
            limiter.correct(1000, 100)

    asyncio.run(work())
    assert clock.now - 1000 == pytest.approx(100, rel=0.02)  # 10,000 tokens at 100 a second


def test_a_pause_delays_all_requests(clock):
    limiter = RateLimiter(None, None)
    limiter.pause(7)
    asyncio.run(limiter.acquire(1))
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
def test_parse_retry_after(clock, headers, seconds):
    assert parse_retry_after(headers) == (
        seconds if seconds is None else pytest.approx(seconds, abs=1e-6)
    )


def test_backoff_doubles_with_jitter_up_to_its_maximum():
    retry_policy = RetryPolicy(initial_wait=1, max_wait=10)
    for attempt, longest in enumerate((1, 2, 4, 8, 10, 10)):
        waits = [retry_policy.backoff(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert len(set(waits)) > 100


def test_the_breaker_opens_allows_one_trial_and_gives_up(clock, monkeypatch):
    async def wait_for(awaitable, seconds: float) -> None:
        awaitable.close()
        await clock.sleep(seconds)
        raise TimeoutError

    async def work() -> None:
        monkeypatch.setattr(limits.asyncio, "wait_for", wait_for)
        breaker = CircuitBreaker(failures=3, cooldown=20, max_openings=2)
        for _ in range(2):
            breaker.record_failure("a")
        breaker.record_success()
        for _ in range(3):
            breaker.record_failure("HTTP 500")
        opened_at = clock.now
        for _ in range(50):
            breaker.record_failure("late")  # calls already in progress do not count again
        assert not breaker.gave_up
        assert await breaker.wait_closed()
        assert clock.now - opened_at == pytest.approx(20)
        breaker.record_failure("late")
        assert not breaker.gave_up
        breaker.record_failure("HTTP 502", is_trial=True)
        assert breaker.gave_up
        assert breaker.reason == "HTTP 502"

    asyncio.run(work())


def test_a_cancelled_trial_allows_the_next_one(clock):
    async def work() -> None:
        breaker = CircuitBreaker(failures=1, cooldown=0)
        breaker.record_failure("x")
        assert await breaker.wait_closed()
        breaker.cancel_trial()
        assert await breaker.wait_closed()

    asyncio.run(work())


def test_after_a_pause_requests_are_spaced_again(clock):
    """All requests wait for the end of the pause, and must not all start at once then."""

    async def work() -> list[float]:
        limiter, starts = RateLimiter(600, None), []
        limiter.pause(30)

        async def request() -> None:
            await limiter.acquire(1)
            starts.append(clock.now)

        await asyncio.gather(*(request() for _ in range(100)))
        return starts

    starts = asyncio.run(work())
    assert min(starts) == 1030
    assert max(starts) - 1030 == pytest.approx(10, abs=1)  # 100 calls at 10 a second


def test_a_success_closes_the_breaker_for_all_callers(clock):
    async def work() -> None:
        breaker = CircuitBreaker(failures=1, cooldown=0)
        breaker.record_failure("x")
        await breaker.wait_closed()
        breaker.record_success()
        for _ in range(5):
            await breaker.wait_closed()
        assert not breaker.gave_up

    asyncio.run(work())
