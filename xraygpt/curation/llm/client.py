"""Requests for the answers of one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xraygpt.curation.llm.caller import Caller
from xraygpt.curation.llm.completions import Reply, request_body
from xraygpt.curation.llm.endpoint import Endpoint
from xraygpt.curation.llm.failures import FailureClassifier
from xraygpt.curation.llm.limits import CircuitBreaker, RateLimiter, RetryPolicy
from xraygpt.curation.llm.stopping import StopSignal
from xraygpt.curation.llm.tasks import Task


class Client(Caller):
    """Sends the requests for one task to an endpoint.

    Args:
        endpoint: The language model.
        task: The task, which defines the form and the maximum length of answers.
        limiter: Enforces the limits per minute.
        retry_policy: The number of attempts, the waits and the timeout.
        breaker: The circuit breaker, which opens when every call fails.
        stop: The signal that is set when nothing new may start.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        task: Task,
        limiter: RateLimiter,
        retry_policy: RetryPolicy,
        breaker: CircuitBreaker,
        stop: StopSignal,
    ) -> None:
        sdk = endpoint.create_sdk_client(retry_policy.timeout)
        failures = FailureClassifier(endpoint.address(), endpoint.model)
        super().__init__(sdk, failures, limiter, retry_policy, breaker, stop)
        self.endpoint, self.task = endpoint, task

    async def ask(
        self,
        messages: list[dict[str, Any]],
        estimated_in: int,
        on_wasted: Callable[[int, int], None],
    ) -> Reply:
        """Send the messages of an item; see `complete`."""
        body = request_body(self.endpoint, self.task, messages)
        return await self.complete(body, estimated_in, self.task.output_tokens // 2, on_wasted)
