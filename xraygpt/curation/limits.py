"""How fast and how stubbornly an endpoint is asked: pace, backoff, circuit breaker."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

BURST_SECONDS = 0.5
"""How far the pace may run ahead: in any minute at most (60 + this) / 60 of the limit."""


class Pace:
    """Requests and tokens evenly spaced under two limits a minute (GCRA, ITU-T I.371).

    Args:
        requests: A minute; None for no limit.
        tokens: A minute; None for no limit.
    """

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._rates = [requests / 60 if requests else None, tokens / 60 if tokens else None]
        self._next = [0.0, 0.0]  # when each limit would be kept to the letter
        self._paused = 0.0
        self._turn = asyncio.Lock()

    async def wait(self, tokens: int) -> None:
        """Until one more request of so many tokens may start; requests start in turn."""
        async with self._turn:
            while True:
                now = time.monotonic()
                limits = [self._next[i] - BURST_SECONDS for i in (0, 1) if self._rates[i]]
                delay = max([self._paused, *limits]) - now
                if delay <= 0:
                    break
                await asyncio.sleep(delay)
            for i, size in enumerate((1, tokens)):
                rate = self._rates[i]
                if rate is not None:
                    self._next[i] = max(self._next[i], now) + size / rate

    def settle(self, reserved: int, used: int) -> None:
        """Correct a guess of tokens by what the endpoint counted."""
        if self._rates[1] is not None:
            self._next[1] += (used - reserved) / self._rates[1]

    def pause(self, seconds: float) -> None:
        """Start nothing for so long: the endpoint asked for it."""
        self._paused = max(self._paused, time.monotonic() + seconds)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to go on asking."""

    attempts: int = 6
    """Most calls for one answer while the endpoint is at fault."""
    first_wait: float = 1.0
    """Seconds; doubles with each attempt, times a random factor of 0.5 to 1."""
    longest_wait: float = 60.0
    """Seconds a backoff may grow to."""
    longest_retry_after: float = 600.0
    """Seconds; an endpoint that asks for more stops the run."""
    timeout: float = 120.0
    """Seconds for one call."""

    def wait(self, attempt: int) -> float:
        """Seconds after the failed attempt of that number, from 0."""
        longest = min(self.longest_wait, self.first_wait * 2**attempt)
        return longest * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds an answer asks to wait: `retry-after-ms`, or `retry-after` as seconds or a date.

    Args:
        headers: Of the answer, with lower-case names.
    """
    exact, text = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if exact is not None:
            return max(float(exact) / 1000, 0.0)
        if text is None:
            return None
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(str(text)).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


class Breaker:
    """Stops asking an endpoint that fails every time: waits, lets one call try, gives up.

    Args:
        failures: In a row, over all rows, until it opens.
        cooldown: Seconds until one call may try.
        openings: In a row without a success until `gave_up`.
    """

    def __init__(self, failures: int = 40, cooldown: float = 20.0, openings: int = 3) -> None:
        self.failures, self.cooldown, self.openings = failures, cooldown, openings
        self.reason = ""
        self._in_a_row = self._opened = 0
        self._closed = asyncio.Event()
        self._closed.set()
        self._trying = False
        self._until = 0.0

    @property
    def gave_up(self) -> bool:
        """Whether the endpoint has been given up."""
        return self._opened >= self.openings

    async def ready(self) -> bool:
        """Until calls may go out; while open, one caller is let through after the cooldown.

        Returns:
            Whether this caller is that one. It must report what came of it, or `withdraw`.
        """
        while not self._closed.is_set():
            delay = self._until - time.monotonic()
            if delay <= 0 and not self._trying:
                self._trying = True
                return True
            try:
                await asyncio.wait_for(self._closed.wait(), max(delay, 0.05))
            except TimeoutError:
                continue
        return False

    def succeeded(self) -> None:
        """The endpoint works, whatever it says of the request."""
        self._in_a_row = self._opened = 0
        self._trying = False
        self._closed.set()

    def withdraw(self) -> None:
        """The caller that was let through made no call after all."""
        self._trying = False

    def failed(self, reason: str, trial: bool = False) -> None:
        """A call failed for the endpoint's sake.

        Args:
            reason: Why.
            trial: Whether `ready` had let this very call through.
        """
        self._in_a_row += 1
        if not trial and (not self._closed.is_set() or self._in_a_row < self.failures):
            return  # while open: it was under way when the breaker opened
        self.reason, self._in_a_row, self._trying = reason, 0, False
        self._opened += 1
        self._until = time.monotonic() + self.cooldown
        self._closed.clear()
        if self.gave_up:
            self._closed.set()  # nobody waits any more
