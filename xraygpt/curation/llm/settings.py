"""Settings for rewriting with a language model."""

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
    """The user's reference to a written zero-retention agreement."""
    batch: bool = False
    """Whether to use the Batch API instead of single calls."""
    poll_seconds: float = 60.0
    """Seconds between two status requests for a batch."""
    retry_states: tuple[str, ...] = ()
    """Final states to request again: ``refused``, ``invalid``."""
    partial: bool = False
    """Whether to write the folder even if some rows have no final state."""
    breaker: CircuitBreaker | None = None
    """The circuit breaker; None for one that suits the concurrency."""
