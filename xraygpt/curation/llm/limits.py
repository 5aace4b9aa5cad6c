"""Flow control for an endpoint: the limits of a run, rate limits, retries and circuit breaker."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

BURST_SECONDS = 0.5
"""Seconds the rate limiter may run ahead; a minute sees at most (60 + this) / 60 of the limit."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a run."""

    concurrency: int = 32
    """Maximum number of concurrent calls."""
    rpm: float | None = None
    """Maximum requests per minute."""
    tpm: float | None = None
    """Maximum input and output tokens per minute."""
    max_tokens: int | None = None
    """Maximum input and output tokens over all runs on a folder."""
    max_cost: float | None = None
    """Maximum cost over all runs on a folder, in the currency of the price file."""


class RateLimiter:
    """Spaces requests and tokens evenly under two per-minute limits (GCRA, ITU-T I.371).

    Args:
        requests: Requests per minute; None for no limit.
        tokens: Tokens per minute; None for no limit.
    """

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._rates = [requests / 60 if requests else None, tokens / 60 if tokens else None]
        self._next = [0.0, 0.0]  # theoretical arrival time of the next request, per limit
        self._paused_until = 0.0
        self._queue = asyncio.Lock()

    async def acquire(self, tokens: int) -> None:
        """Wait until a request with `tokens` tokens may start, in order of arrival."""
        async with self._queue:
            while True:
                now = time.monotonic()
                limits = [self._next[i] - BURST_SECONDS for i in (0, 1) if self._rates[i]]
                delay = max([self._paused_until, *limits]) - now
                if delay <= 0:
                    break
                await asyncio.sleep(delay)
            for i, size in enumerate((1, tokens)):
                rate = self._rates[i]
                if rate is not None:
                    self._next[i] = max(self._next[i], now) + size / rate

    def correct(self, estimated: int, used: int) -> None:
        """Replace the estimated tokens of a request with the tokens it used."""
        if self._rates[1] is not None:
            self._next[1] += (used - estimated) / self._rates[1]

    def pause(self, seconds: float) -> None:
        """Start no request for `seconds`, as the endpoint requested."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """The number of calls, the waits between them and the timeout."""

    max_attempts: int = 6
    """Maximum number of calls for one answer while the endpoint fails."""
    initial_wait: float = 1.0
    """Seconds; doubled after each attempt and multiplied by a random factor from 0.5 to 1."""
    max_wait: float = 60.0
    """Upper bound of the wait, in seconds."""
    max_retry_after: float = 600.0
    """Seconds; the run stops when an endpoint asks for a longer wait."""
    timeout: float = 120.0
    """Seconds per call."""

    def backoff(self, attempt: int) -> float:
        """Return the seconds to wait after failed attempt number `attempt`, counted from 0."""
        longest = min(self.max_wait, self.initial_wait * 2**attempt)
        return longest * random.uniform(0.5, 1.0)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the wait in seconds from `retry-after-ms`, or from `retry-after` (seconds or date).

    Args:
        headers: Response headers with lower-case names.
    """
    milliseconds, text = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(float(milliseconds) / 1000, 0.0)
        if text is None:
            return None
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(str(text)).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


class CircuitBreaker:
    """Blocks calls to an endpoint that keeps failing, probes it after a cooldown, then gives up.

    Args:
        failures: Number of consecutive failures, over all rows, that open the breaker.
        cooldown: Seconds until one trial call is allowed.
        max_openings: Number of openings without a success after which `gave_up` is true.
    """

    def __init__(self, failures: int = 40, cooldown: float = 20.0, max_openings: int = 3) -> None:
        self.failures, self.cooldown, self.max_openings = failures, cooldown, max_openings
        self.reason = ""
        self._consecutive_failures = self._openings = 0
        self._closed = asyncio.Event()
        self._closed.set()
        self._trial_running = False
        self._open_until = 0.0

    @property
    def gave_up(self) -> bool:
        """Whether the endpoint is considered down for good."""
        return self._openings >= self.max_openings

    async def wait_closed(self) -> bool:
        """Wait until calls may be made; while the breaker is open, one caller passes per cooldown.

        Returns:
            Whether the caller makes the trial call. If so, it must report the outcome or call
            `cancel_trial`.
        """
        while not self._closed.is_set():
            delay = self._open_until - time.monotonic()
            if delay <= 0 and not self._trial_running:
                self._trial_running = True
                return True
            try:
                await asyncio.wait_for(self._closed.wait(), max(delay, 0.05))
            except TimeoutError:
                continue
        return False

    def record_success(self) -> None:
        """Close the breaker, because the endpoint works, whatever its response was."""
        self._consecutive_failures = self._openings = 0
        self._trial_running = False
        self._closed.set()

    def cancel_trial(self) -> None:
        """Allow another caller to make the trial call."""
        self._trial_running = False

    def record_failure(self, reason: str, is_trial: bool = False) -> None:
        """Count a failure of the endpoint, and open the breaker after too many of them.

        Args:
            reason: Why the call failed.
            is_trial: Whether this was the trial call that `wait_closed` let through.
        """
        self._consecutive_failures += 1
        is_open = not self._closed.is_set()
        if not is_trial and (is_open or self._consecutive_failures < self.failures):
            return  # a call that ends while the breaker is open started before
        self.reason, self._consecutive_failures, self._trial_running = reason, 0, False
        self._openings += 1
        self._open_until = time.monotonic() + self.cooldown
        self._closed.clear()
        if self.gave_up:
            self._closed.set()  # wake all waiting callers
