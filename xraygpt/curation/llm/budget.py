"""Token and cost limits over all runs on a folder."""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from xraygpt.curation.llm.ledger_rows import Usage
from xraygpt.curation.llm.limits import Limits
from xraygpt.curation.llm.prices import Price
from xraygpt.curation.llm.stopping import StopSignal


class BudgetExceeded(Exception):
    """The next call could exceed --max-usd or --max-tokens."""


class UsageLog(Protocol):
    """Keeps the usage of all calls on a folder, such as `Ledger`."""

    def total_usage(self) -> Usage:
        """Return the usage of all calls so far."""

    def add_usage(self, tokens_in: int, tokens_out: int, cost: float) -> None:
        """Record the usage of one call."""


class Budget:
    """Keeps total usage within the limits; calls in progress count with their maximum usage.

    Input tokens are estimated from characters. If there is a limit, the first call runs alone, with
    twice its estimate reserved. Later calls reserve 1.1 times the largest ratio of reported to
    estimated tokens so far. Output tokens are limited by the request itself.

    Args:
        ledger: The ledger, which contains the usage so far and records that of each call.
        limits: The maximum tokens and cost.
        price: The price of tokens; None if cost is not counted.
        batch: Whether the batch discount applies.
        names: Names of the limits of tokens and of cost, for messages.
    """

    def __init__(
        self,
        ledger: UsageLog,
        limits: Limits,
        price: Price | None,
        batch: bool = False,
        names: tuple[str, str] = ("--max-tokens", "--max-usd"),
    ) -> None:
        self.names = names
        self.ledger, self.limits, self.price, self.batch = ledger, limits, price, batch
        usage = ledger.total_usage()
        self.tokens, self.cost = usage.tokens, usage.cost
        self._input_factor, self._is_calibrated = 2.0, False
        self._reserved_tokens, self._reserved_cost, self._reserved_calls = 0, 0.0, 0
        self._call_finished = asyncio.Event()

    def cost_of(self, tokens_in: int, tokens_out: int) -> float:
        """Compute the cost of a call, which is 0 without a price."""
        return self.price.cost(tokens_in, tokens_out, self.batch) if self.price else 0.0

    def exceeded_message(self) -> str:
        """Return a message that says what is used up and what to do."""
        limits, (tokens, cost) = self.limits, self.names
        used = []
        if limits.max_tokens is not None:
            used.append(f"{self.tokens:,} of {tokens} {limits.max_tokens:,}")
        if limits.max_cost is not None:
            used.append(f"{self.cost:.2f} of {cost} {limits.max_cost:.2f}")
        return (
            f"the next call could exceed the budget ({', '.join(used)} used over all runs on this "
            "folder): raise the limit to continue"
        )

    def calibrate(self, token_ratio: float) -> None:
        """Set the largest ratio of reported to estimated input tokens so far, or 0 for none."""
        if token_ratio:
            self._input_factor, self._is_calibrated = 1.1 * token_ratio, True

    def max_usage(self, estimated_in: int, output_tokens: int) -> tuple[int, int]:
        """Return the maximum input and output tokens of a call."""
        return math.ceil(self._input_factor * estimated_in), output_tokens

    def fits(self, tokens_in: int, tokens_out: int) -> bool:
        """Return whether the budget allows a call in addition to those in progress."""
        tokens = self.tokens + self._reserved_tokens + tokens_in + tokens_out
        cost = self.cost + self._reserved_cost + self.cost_of(tokens_in, tokens_out)
        limits = self.limits
        return (limits.max_tokens is None or tokens <= limits.max_tokens) and (
            limits.max_cost is None or cost <= limits.max_cost
        )

    def reserve(self, tokens_in: int, tokens_out: int) -> None:
        """Count a call as in progress."""
        self._reserved_tokens += tokens_in + tokens_out
        self._reserved_cost += self.cost_of(tokens_in, tokens_out)
        self._reserved_calls += 1

    def release(self, tokens_in: int, tokens_out: int) -> None:
        """Remove the reservation of a finished call."""
        self._reserved_tokens -= tokens_in + tokens_out
        self._reserved_cost -= self.cost_of(tokens_in, tokens_out)
        self._reserved_calls -= 1
        self._call_finished.set()

    async def acquire(
        self, stop: StopSignal, estimated_in: int, output_tokens: int
    ) -> tuple[int, int]:
        """Reserve the maximum usage of a call as soon as the calls in progress leave enough.

        Returns:
            The reserved input and output tokens.

        Raises:
            BudgetExceeded: No call is in progress, and the remaining budget is not enough.
            RunStopped: The run is stopping.
        """
        limited = self.limits.max_tokens is not None or self.limits.max_cost is not None
        while True:
            usage = self.max_usage(estimated_in, output_tokens)
            must_run_alone = limited and not self._is_calibrated
            if self.fits(*usage) and not (must_run_alone and self._reserved_calls):
                self.reserve(*usage)
                return usage
            if not self._reserved_calls:
                raise BudgetExceeded
            self._call_finished.clear()
            await stop.wait_for(self._call_finished.wait())

    def charge(self, tokens_in: int, tokens_out: int) -> None:
        """Count the usage of a call."""
        cost = self.cost_of(tokens_in, tokens_out)
        self.tokens += tokens_in + tokens_out
        self.cost += cost
        if tokens_in or tokens_out:
            self.ledger.add_usage(tokens_in, tokens_out, cost)

    def charge_wasted(self, tokens_in: int, tokens_out: int) -> None:
        """Count the usage of a call that returned no answer.

        Raises:
            BudgetExceeded: The remaining budget is not enough for a retry.
        """
        self.charge(tokens_in, tokens_out)
        if not self.fits(0, 0):
            raise BudgetExceeded
