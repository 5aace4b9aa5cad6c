"""What single calls and batches share during a run."""

from __future__ import annotations

from collections import Counter

from xraygpt.curation.llm.budget import Budget
from xraygpt.curation.llm.client import Client
from xraygpt.curation.llm.ledger import Ledger
from xraygpt.curation.llm.ledger_rows import Row
from xraygpt.curation.llm.limits import CircuitBreaker, RateLimiter
from xraygpt.curation.llm.settings import RewriteSettings
from xraygpt.curation.llm.stopping import StopSignal


class RunContext:
    """The settings and the state of one run.

    Args:
        ledger: The open ledger, in which the rows of the items are prepared.
        settings: The language model and how it is called.

    Attributes:
        drafts: The rejected first answers from earlier runs, by row key.
        states: The number of rows in each final state.
    """

    def __init__(self, ledger: Ledger, settings: RewriteSettings) -> None:
        self.ledger, self.settings = ledger, settings
        self.budget = Budget(ledger, settings.limits, settings.price, settings.batch)
        self.breaker = settings.breaker or CircuitBreaker(
            failures=max(20, 2 * settings.limits.concurrency)
        )
        self.drafts = ledger.pending_drafts()
        self.states: Counter[str] = Counter()

    def create_client(self, limiter: RateLimiter, stop: StopSignal) -> Client:
        """Create the client for this run."""
        settings = self.settings
        return Client(
            settings.endpoint, settings.task, limiter, settings.retry_policy, self.breaker, stop
        )

    def finish(self, row: Row) -> None:
        """Save the final state of a row and count it."""
        self.ledger.finish(row, self.settings.endpoint.model)
        self.states[row.state] += 1
