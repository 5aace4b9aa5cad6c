"""Settings of rewriting with a language model."""

from __future__ import annotations

from dataclasses import dataclass, field

from xraygpt.curation.llm.endpoint import Endpoint
from xraygpt.curation.llm.limits import CircuitBreaker, Limits, RetryPolicy
from xraygpt.curation.llm.prices import Price
from xraygpt.curation.llm.prompts import Prompt
from xraygpt.curation.llm.tasks import Task


@dataclass(frozen=True, kw_only=True)
class RewriteSettings:
    """Which language model rewrites the reports, and how it is called."""

    endpoint: Endpoint
    task: Task
    prompt: Prompt
    limits: Limits = field(default_factory=Limits)
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    price: Price | None = None
    agreement: str = ""
    """Reference of the user's written zero-retention agreement."""
    batch: bool = False
    """Use the Batch API instead of single calls."""
    poll_seconds: float = 60.0
    """Seconds between two status requests for a batch."""
    retry_states: tuple[str, ...] = ()
    """Final states to request again: ``refused``, ``invalid``."""
    partial: bool = False
    """Write the folder even if some rows have no final state."""
    breaker: CircuitBreaker | None = None
    """None: one that suits the concurrency."""
