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
CODE = re.compile(r"^[a-z][a-z_]{2,40}$")
_NEVER_MET = 4  # connections that could not be made, with none made before
_NEVER_GOOD = 10  # requests refused as malformed, with none accepted before
CHARACTERS_PER_TOKEN = 4.0
"""Of English reports and prompts with a byte-pair vocabulary; measured: docs/curation.md."""
_REDIRECTED = "it redirects elsewhere; give that address as --base-url"
_FATAL = {
    401: "the key is wrong or has no right to this model",
    403: "the key is wrong or has no right to this model",
    404: "no such address or model ({model})",
    429: "the quota is used up",
    **dict.fromkeys((301, 302, 303, 307, 308), _REDIRECTED),
}
_HINTS = {
    "temperature": "the model takes no temperature: --temperature none",
    "seed": "the endpoint takes no seed: leave --seed out",
    "response_format": "the endpoint or model knows no structured outputs (JSON schema)",
    "max_tokens": "the endpoint wants max_completion_tokens: --provider openai with --base-url",
    "max_completion_tokens": "the endpoint wants max_tokens: --provider local with --base-url",
    "model": "the endpoint does not know this --model",
}


T = TypeVar("T")
V = TypeVar("V")


class EndpointError(XrayGPTError):
    """The endpoint cannot be worked with; the run stops, what was answered stays.

    Attributes:
        status: Of HTTP, where that was the reason.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


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


@dataclass(frozen=True)
class _End:
    """How a call ended that gave nothing, or `final`: that no other call can mend it."""

    reason: str = ""
    wait: float | None = None
    unknown: bool = False
    final: Reply | None = None


def estimate(messages: list[dict[str, Any]], picture_tokens: int, schema: int = 0) -> int:
    """Tokens of a request by its characters, and so many for each picture.

    Args:
        messages: As they are sent.
        picture_tokens: Of one picture.
        schema: Characters of the form that is asked for.
    """
    characters, pictures = schema, 0
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
    read, wrote = usage_of(completion)
    guessed_out = round(len(content or "") / CHARACTERS_PER_TOKEN)
    tokens = (guessed_in if read is None else read, guessed_out if wrote is None else wrote)
    stop = getattr(choices[0], "finish_reason", None)
    if refusal:
        return Reply("refused", "", "the model refused", *tokens)
    if stop == "content_filter":
        return Reply("refused", "", "the endpoint's content filter", *tokens)
    reason = "cut off at the limit of tokens" if stop == "length" else ""
    return Reply("answered", content or "", reason, *tokens)


def usage_of(completion: Any) -> tuple[int | None, int | None]:
    """Tokens read and written as the endpoint counted them, of whatever it sent."""
    usage = getattr(completion, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    read, wrote = (c if isinstance(c, int) and c >= 0 else None for c in counts)
    return read, wrote


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
        self.ratio = 0.0  # largest of tokens read, as counted to as guessed
        self._accepted = self._malformed = self._unmet = 0

    async def ask(
        self, messages: list[dict[str, Any]], guessed_in: int, lost: Callable[[int, int], None]
    ) -> Reply:
        """Send messages until an answer comes or patience ends.

        Args:
            messages: What to send.
            guessed_in: Tokens of it.
            lost: Called with the tokens read and written of each call that gave no answer: as
                counted where it sent a count, as guessed where nobody knows what came of it.

        Raises:
            EndpointError: The endpoint cannot be worked with.
            Released: The run is stopping and no call is under way.
        """
        request = body(self.endpoint, self.task, messages)
        named = {"model": request.pop("model"), "messages": request.pop("messages")}

        def read(found: Any) -> Reply | None:
            reply = read_completion(found, guessed_in)
            counted = usage_of(found)
            if reply is None:
                lost(*(count or 0 for count in counted))
            elif counted[0]:
                self.ratio = max(self.ratio, counted[0] / max(guessed_in, 1))
            return reply

        guess = guessed_in + self.task.output_tokens // 2
        reply, failure = await self.patiently(
            # As extra_body the SDK sends our schema as it is; walking through it costs 1 ms a call.
            lambda headers: self.sdk.chat.completions.create(
                **named, extra_body=request, extra_headers=headers
            ),
            read,
            guess,
            lambda: lost(guessed_in, 0),
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
        unknown: Callable[[], None] = lambda: None,
        *,
        attempts: int | None = None,
        timeout: float | None = None,
    ) -> tuple[T | None, Reply]:
        """Make a call, again where that can help.

        Args:
            call: Takes the headers to send along.
            read: What the call returns as it is wanted; None if it is nothing of the kind.
            guess: Tokens it will take.
            unknown: Called when a call was sent and nobody knows what came of it.
            attempts: Most calls, if not as `patience` has it.
            timeout: Seconds for each, likewise.

        Returns:
            What was read, or None and why there is nothing.

        Raises:
            EndpointError: No later call can end otherwise.
            Released: The run is stopping and no call is under way.
        """
        reason = ""
        attempts = attempts or self.patience.attempts
        for attempt in range(attempts):
            trial = await self.unless_stopped(self.breaker.ready())
            try:
                if self.breaker.gave_up:
                    self._give_up(f"fails every time: {self.breaker.reason}")
                await self.unless_stopped(self.pace.wait(guess))
                found, end = await self._once(call, read, attempt, timeout or self.patience.timeout)
            finally:
                if trial:
                    self.breaker.withdraw()
            if found is not None or end.final is not None:
                self.breaker.succeeded()
                return found, end.final or Reply("answered")
            reason = end.reason
            if end.unknown:
                unknown()
            self.breaker.failed(reason, trial)
            if attempt + 1 < attempts:
                await self._pause(end.wait, attempt)
        calls = "1 call" if attempts == 1 else f"{attempts} calls"
        return None, Reply("failed", reason=f"{calls}: {reason}")

    async def _once(
        self,
        call: Callable[[dict[str, str]], Awaitable[Any]],
        read: Callable[[Any], T | None],
        attempt: int,
        timeout: float,
    ) -> tuple[T | None, _End]:
        """One call: what was read of it, or how it ended."""
        import openai

        self.calls += 1
        status = 0
        headers = {"x-stainless-retry-count": str(attempt)}
        try:
            # The SDK's timeout is for each read; an endpoint that drips would never end.
            found = await asyncio.wait_for(call(headers), timeout)
            value = read(found)
            if value is not None:
                self._accepted += 1
                return value, _End()
            return None, _End("an answer of another shape")
        except (openai.APITimeoutError, TimeoutError):
            return None, _End(f"no answer within {timeout:g} s", unknown=True)
        except openai.APIConnectionError as error:
            nobody = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
            if not nobody:
                return None, _End("no connection", unknown=True)
        except openai.APIStatusError as error:
            status = int(error.status_code)
            code = str(error.code or "") if CODE.match(str(error.code or "")) else ""
            param = error.param if isinstance(error.param, str) else ""
            wait = retry_after({k.lower(): v for k, v in error.response.headers.items()})
        except (openai.APIError, ValueError, TypeError, KeyError, AttributeError):
            return None, _End("an answer that is no JSON", unknown=True)
        # Outside of `except`: what is raised here drags no message of the endpoint along.
        if not status:
            return None, self._nobody()
        return None, self._status(status, code, param, wait)

    def _nobody(self) -> _End:
        """What it means that no connection could be made.

        Raises:
            EndpointError: There never was one in this run.
        """
        self._unmet += 1
        if not self._accepted and self._unmet >= _NEVER_MET:
            self._give_up("nobody answers there; start the server, or mend the address")
        return _End("no connection")

    async def _pause(self, asked: float | None, attempt: int) -> None:
        if asked is None:
            await self.unless_stopped(asyncio.sleep(self.patience.wait(attempt)))
            return
        if asked > self.patience.longest_retry_after:
            self._give_up(f"asks to come back in {asked:.0f} s: rate limit or quota")
        self.pace.pause(asked)  # the limit is the account's, so all wait
        await self.unless_stopped(asyncio.sleep(asked))

    async def sleep(self, seconds: float) -> None:
        """Wait, but not past a stop.

        Raises:
            Released: The run is stopping.
        """
        await self.unless_stopped(asyncio.sleep(seconds))

    def _status(self, status: int, code: str, param: str, wait: float | None) -> _End:
        """What an HTTP error means.

        Raises:
            EndpointError: No later call can end otherwise.
        """
        said = f"HTTP {status}" + (f" ({code})" if code else "")
        if status in _RETRIED and code != "insufficient_quota":
            return _End(said, wait=wait)
        remedy = _FATAL.get(status, "")
        if remedy:
            self._give_up(f"{said}: {remedy.format(model=self.endpoint.model)}", status)
        if code in ("content_filter", "content_policy_violation"):
            return _End(final=Reply("refused", reason=f"{said}: content filter"))
        if param in _HINTS:
            self._give_up(f"{said}: {_HINTS[param]}", status)
        self._malformed += 1
        if not self._accepted and self._malformed >= _NEVER_GOOD:
            self._give_up(f"{said} to each of the first {_NEVER_GOOD} requests", status)
        return _End(final=Reply("failed", reason=said))

    def _give_up(self, why: str, status: int = 0) -> NoReturn:
        raise EndpointError(f"{self.endpoint.address()}: {why}", status) from None

    async def unless_stopped(self, waited: Awaitable[V]) -> V:
        """What is waited for, but not past a stop.

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
        return task.result()
