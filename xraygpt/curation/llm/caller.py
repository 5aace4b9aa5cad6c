"""Calls to an endpoint, with rate limits, retries and a circuit breaker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from xraygpt.curation.llm.completions import Reply, parse_completion, reported_usage
from xraygpt.curation.llm.failures import Failure, FailureClassifier, HttpError
from xraygpt.curation.llm.limits import CircuitBreaker, RateLimiter, RetryPolicy
from xraygpt.curation.llm.stopping import StopSignal

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
Call = Callable[[dict[str, str]], Awaitable[Any]]
"""A function that makes a request with the given extra headers."""


class Caller:
    """Makes calls to an endpoint, and repeats those that fail while a retry can help.

    Args:
        sdk: The SDK client.
        failures: Decides what a failed call leads to.
        limiter: Enforces the limits per minute.
        retry_policy: The number of attempts, the waits and the timeout.
        breaker: The circuit breaker, which opens when every call fails.
        stop: The signal that is set when nothing new may start.

    Attributes:
        calls: Number of calls so far.
        token_ratio: The largest ratio of reported to estimated input tokens so far, or 0.
    """

    def __init__(
        self,
        sdk: openai.AsyncOpenAI,
        failures: FailureClassifier,
        limiter: RateLimiter,
        retry_policy: RetryPolicy,
        breaker: CircuitBreaker,
        stop: StopSignal,
    ) -> None:
        self.sdk, self.failures = sdk, failures
        self.limiter, self.retry_policy, self.breaker = limiter, retry_policy, breaker
        self.stop = stop
        self.calls = 0
        self.token_ratio = 0.0

    async def complete(
        self,
        body: Mapping[str, Any],
        estimated_in: int,
        expected_out: int,
        on_wasted: Callable[[int, int], None],
    ) -> Reply:
        """Request a chat completion until there is an answer or the attempts run out.

        Args:
            body: The body of the request.
            estimated_in: The estimated input tokens.
            expected_out: The expected output tokens, for the limit per minute.
            on_wasted: Called with the input and output tokens of each call without an answer, as
                reported, or as estimated if it is unknown whether the request was processed.

        Raises:
            EndpointError: The endpoint cannot be used.
            RunStopped: The run is stopping and no call is in progress.
        """
        extra = dict(body)
        named = {"model": extra.pop("model"), "messages": extra.pop("messages")}

        def parse(completion: Any) -> Reply | None:
            reply = parse_completion(completion, estimated_in)
            usage = reported_usage(completion)
            if reply is None:
                on_wasted(*(count or 0 for count in usage))
            elif usage[0]:
                self.token_ratio = max(self.token_ratio, usage[0] / max(estimated_in, 1))
            return reply

        estimated = estimated_in + expected_out
        reply, failure = await self.call_with_retries(
            # The SDK sends `extra_body` unchanged; walking the schema would cost 1 ms per call.
            lambda headers: self.sdk.chat.completions.create(
                **named, extra_body=extra, extra_headers=headers
            ),
            parse,
            estimated,
            lambda: on_wasted(estimated_in, 0),
        )
        if reply is None:
            return failure
        self.limiter.correct(estimated, reply.tokens_in + reply.tokens_out)
        return reply

    async def call_with_retries(
        self,
        call: Call,
        parse: Callable[[Any], T | None],
        estimated_tokens: int = 0,
        on_unknown: Callable[[], None] = lambda: None,
        *,
        attempts: int | None = None,
        timeout: float | None = None,
    ) -> tuple[T | None, Reply]:
        """Make a call, and repeat it while a retry can help.

        Args:
            call: Makes the request.
            parse: Converts the response, or returns None if the shape of the response is wrong.
            estimated_tokens: Estimated tokens of the call.
            on_unknown: Called when the endpoint may have processed a call that returned no result.
            attempts: Maximum number of calls; None for that of the retry policy.
            timeout: Seconds per call; None for the timeout of the retry policy.

        Returns:
            The parsed response, or None and a reply that says why there is none.

        Raises:
            EndpointError: No later call can succeed.
            RunStopped: The run is stopping and no call is in progress.
        """
        failure = Failure()
        attempts = attempts or self.retry_policy.max_attempts
        for attempt in range(attempts):
            is_trial = await self.stop.wait_for(self.breaker.wait_closed())
            try:
                if self.breaker.gave_up:
                    self.failures.stop(f"every call fails: {self.breaker.reason}")
                await self.stop.wait_for(self.limiter.acquire(estimated_tokens))
                result, failure = await self._call_once(
                    call, parse, attempt, timeout or self.retry_policy.timeout
                )
            finally:
                if is_trial:
                    self.breaker.cancel_trial()
            if result is not None or failure.final is not None:
                self.breaker.record_success()
                return result, failure.final or Reply("answered")
            if failure.maybe_processed:
                on_unknown()
            self.breaker.record_failure(failure.reason, is_trial)
            if attempt + 1 < attempts:
                await self._wait_before_retry(failure.retry_after, attempt)
        calls = "1 call" if attempts == 1 else f"{attempts} calls"
        return None, Reply("failed", reason=f"{calls}: {failure.reason}")

    async def _call_once(
        self, call: Call, parse: Callable[[Any], T | None], attempt: int, timeout: float
    ) -> tuple[T | None, Failure]:
        import openai

        self.calls += 1
        http_error = None
        try:
            # The SDK's timeout is per read: an endpoint that sends byte by byte would never end.
            response = await asyncio.wait_for(
                call({"x-stainless-retry-count": str(attempt)}), timeout
            )
            result = parse(response)
            if result is None:
                return None, Failure("the response has an unexpected shape")
            self.failures.record_accepted()
            return result, Failure()
        except (openai.APITimeoutError, TimeoutError):
            return None, Failure(f"no answer within {timeout:g} s", maybe_processed=True)
        except openai.APIConnectionError as error:
            if type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout"):
                return None, Failure("no connection", maybe_processed=True)
        except openai.APIStatusError as error:
            http_error = HttpError.from_sdk(error)
        except (openai.APIError, ValueError, TypeError, KeyError, AttributeError):
            return None, Failure("the response is not JSON", maybe_processed=True)
        # Outside `except`, so that an exception raised here does not carry the endpoint's message.
        if http_error is None:
            return None, self.failures.unreachable()
        return None, self.failures.http_error(http_error)

    async def _wait_before_retry(self, retry_after: float | None, attempt: int) -> None:
        if retry_after is None:
            await self.stop.wait_for(asyncio.sleep(self.retry_policy.backoff(attempt)))
            return
        if retry_after > self.retry_policy.max_retry_after:
            self.failures.stop(f"asked to wait {retry_after:.0f} s: check rate limit and quota")
        self.limiter.pause(retry_after)  # the limit applies to the account, so all calls wait
        await self.stop.wait_for(asyncio.sleep(retry_after))
