"""One call to a language model and what can come of it. No message here holds report text."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar

from xraygpt.common.errors import XrayGPTError
from xraygpt.curation.endpoint import Endpoint
from xraygpt.curation.limits import Breaker, Pace, Patience, retry_after
from xraygpt.curation.tasks import Task

_RETRIED = frozenset({408, 409, 425, 429}) | frozenset(range(500, 600))
_CODE = re.compile(r"^[a-z][a-z_]{2,40}$")
_NEVER_GOOD = 10  # requests refused as malformed, with none accepted before
CHARACTERS_PER_TOKEN = 4.0
"""Of English reports and prompts with a byte-pair vocabulary; measured: docs/curation.md."""
_HINTS = {
    "temperature": "the model takes no temperature: --temperature none",
    "seed": "the endpoint takes no seed: leave --seed out",
    "response_format": "the endpoint or model knows no structured outputs (JSON schema)",
    "max_tokens": "the endpoint wants max_completion_tokens: --provider openai with --base-url",
    "max_completion_tokens": "the endpoint wants max_tokens: --provider local with --base-url",
    "model": "the endpoint does not know this --model",
}


T = TypeVar("T")


class EndpointError(XrayGPTError):
    """The endpoint cannot be worked with; the run stops, what was answered stays."""


class Released(Exception):
    """The run is being stopped: the row goes back untouched."""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        state: ``answered`` (content is there), ``refused`` or ``failed``.
        content: The answer's text, perhaps cut off or empty.
        reason: Why it is refused or failed, or `content` cut off; never text of the endpoint.
        tokens_in: Read by the model, as the endpoint counted, or estimated if it did not.
        tokens_out: Written.
    """

    state: Literal["answered", "refused", "failed"]
    content: str = ""
    reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


def estimate(messages: list[dict[str, Any]], picture_tokens: int) -> int:
    """Tokens of a request by its characters, and so many for each picture."""
    characters = pictures = 0
    for message in messages:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        characters += sum(len(p.get("text", "")) for p in parts)
        pictures += sum("image_url" in p for p in parts)
    return round(characters / CHARACTERS_PER_TOKEN) + pictures * picture_tokens


def body(endpoint: Endpoint, task: Task, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A request as the endpoint reads it."""
    form = {"name": task.name, "strict": True, "schema": task.schema()}
    return {
        "model": endpoint.model,
        "messages": messages,
        "response_format": {"type": "json_schema", "json_schema": form},
        **endpoint.decoding(task.output_tokens),
    }


def read_completion(completion: Any, guessed_in: int) -> Reply | None:
    """A chat completion as a `Reply`; None if it is none. The SDK does not check its shape."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        return None
    message = getattr(choices[0], "message", None)
    if message is None:
        return None
    content, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
    if content is not None and not isinstance(content, str):
        return None
    usage = getattr(completion, "usage", None)
    read, wrote = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    tokens = (
        read if isinstance(read, int) else guessed_in,
        wrote if isinstance(wrote, int) else round(len(content or "") / CHARACTERS_PER_TOKEN),
    )
    stop = getattr(choices[0], "finish_reason", None)
    if refusal:
        return Reply("refused", "", "the model refused", *tokens)
    if stop == "content_filter":
        return Reply("refused", "", "the endpoint's content filter", *tokens)
    reason = "cut off at the limit of tokens" if stop == "length" else ""
    return Reply("answered", content or "", reason, *tokens)


class Client:
    """Asks an endpoint, patiently and within its limits.

    Args:
        endpoint: Which.
        task: What for.
        pace: Limits a minute.
        patience: Retries and waits.
        breaker: Opens when every call fails.
        stopping: Set when nothing new may start.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        task: Task,
        pace: Pace,
        patience: Patience,
        breaker: Breaker,
        stopping: asyncio.Event,
    ) -> None:
        self.sdk = endpoint.client(patience.timeout)
        self.endpoint, self.task, self.pace, self.patience = endpoint, task, pace, patience
        self.breaker, self.stopping = breaker, stopping
        self.calls = 0
        self._accepted = self._malformed = 0

    async def ask(self, messages: list[dict[str, Any]], guessed_in: int) -> Reply:
        """Send messages until an answer comes or patience ends.

        Raises:
            EndpointError: The endpoint cannot be worked with.
            Released: The run is stopping and no call is under way.
        """
        request = body(self.endpoint, self.task, messages)
        guess = guessed_in + self.task.output_tokens // 2
        named = {"model": request.pop("model"), "messages": request.pop("messages")}
        reply, failure = await self.patiently(
            # As extra_body the SDK sends our schema as it is; walking through it costs 1 ms a call.
            lambda headers: self.sdk.chat.completions.create(
                **named, extra_body=request, extra_headers=headers
            ),
            lambda found: read_completion(found, guessed_in),
            guess,
        )
        if reply is None:
            return failure
        self.pace.settle(guess, reply.tokens_in + reply.tokens_out)
        return reply

    async def patiently(
        self,
        call: Callable[[dict[str, str]], Awaitable[Any]],
        read: Callable[[Any], T | None],
        guess: int = 0,
    ) -> tuple[T | None, Reply]:
        """Make a call, again where that can help.

        Args:
            call: Takes the headers to send along.
            read: What the call returns as it is wanted; None if it is nothing of the kind.
            guess: Tokens it will take.

        Returns:
            What was read, or None and why there is nothing.

        Raises:
            EndpointError: No later call can end otherwise.
            Released: The run is stopping and no call is under way.
        """
        import openai

        reason = ""
        for attempt in range(self.patience.attempts):
            await self._unless_stopped(self.breaker.ready())
            if self.breaker.gave_up:
                self._give_up(f"fails every time: {self.breaker.reason}")
            await self._unless_stopped(self.pace.wait(guess))
            self.calls += 1
            wait: float | None = None
            try:
                found = read(await call({"x-stainless-retry-count": str(attempt)}))
                if found is not None:
                    self.breaker.succeeded()
                    self._accepted += 1
                    return found, Reply("answered")
                reason = "an answer of another shape"
            except openai.APITimeoutError:
                reason = f"no answer within {self.patience.timeout:g} s"
            except openai.APIConnectionError:
                reason = "no connection"
            except openai.APIStatusError as error:
                final, reason, wait = self._status(error)
                if final is not None:
                    return None, final
            except (openai.APIError, ValueError, TypeError, KeyError, AttributeError):
                # Not chained and never printed: messages of these hold what the endpoint sent.
                reason = "an answer that is no JSON"
            self.breaker.failed(reason)
            if attempt + 1 < self.patience.attempts:
                await self._pause(wait, attempt)
        return None, Reply("failed", reason=f"{self.patience.attempts} calls: {reason}")

    async def _pause(self, asked: float | None, attempt: int) -> None:
        if asked is None:
            await self._unless_stopped(asyncio.sleep(self.patience.wait(attempt)))
            return
        if asked > self.patience.longest_retry_after:
            self._give_up(f"asks to come back in {asked:.0f} s: rate limit or quota")
        self.pace.pause(asked)  # the limit is the account's, so all wait
        await self._unless_stopped(asyncio.sleep(asked))

    async def sleep(self, seconds: float) -> None:
        """Wait, but not past a stop.

        Raises:
            Released: The run is stopping.
        """
        await self._unless_stopped(asyncio.sleep(seconds))

    def _status(self, error: Any) -> tuple[Reply | None, str, float | None]:
        """(reply, reason, seconds to wait) of an HTTP error.

        Raises:
            EndpointError: No later call can end otherwise.
        """
        status = int(error.status_code)
        code = str(error.code or "") if _CODE.match(str(error.code or "")) else ""
        said = f"HTTP {status}" + (f" ({code})" if code else "")
        if status in _RETRIED and code != "insufficient_quota":
            headers = {k.lower(): v for k, v in error.response.headers.items()}
            return None, said, retry_after(headers)
        if status in (401, 403):
            self._give_up(f"{said}: the key is wrong or has no right to this model")
        if status == 404:
            self._give_up(f"{said}: no such address or model ({self.endpoint.model})")
        if status == 429:
            self._give_up(f"{said}: the quota is used up")
        if 300 <= status < 400:
            self._give_up(f"{said}: it redirects elsewhere; give that address as --base-url")
        if code in ("content_filter", "content_policy_violation"):
            return Reply("refused", reason=f"{said}: content filter"), "", None
        if error.param in _HINTS:
            self._give_up(f"{said}: {_HINTS[error.param]}")
        self._malformed += 1
        if not self._accepted and self._malformed >= _NEVER_GOOD:
            self._give_up(f"{said} to each of the first {_NEVER_GOOD} requests")
        return Reply("failed", reason=said), "", None

    def _give_up(self, why: str) -> NoReturn:
        raise EndpointError(f"{self.endpoint.address()}: {why}") from None

    async def _unless_stopped(self, waited: Awaitable[None]) -> None:
        """Wait, but not past a stop.

        Raises:
            Released: The run is stopping.
        """
        task = asyncio.ensure_future(waited)
        await asyncio.sleep(0)
        if not task.done():
            stop = asyncio.ensure_future(self.stopping.wait())
            try:
                await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
                if not task.done():
                    task.cancel()
        if self.stopping.is_set():
            raise Released
        task.result()
