"""Concurrent requests to an endpoint, within a budget and with retries."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from xraygpt.common.errors import DataError
from xraygpt.curation.llm.budget import Budget, BudgetExceeded
from xraygpt.curation.llm.caller import Caller
from xraygpt.curation.llm.completions import Reply
from xraygpt.curation.llm.endpoint import make_sdk_client
from xraygpt.curation.llm.failures import (
    COMMAND_REMEDIES,
    TOO_LONG,
    EndpointError,
    FailureClassifier,
)
from xraygpt.curation.llm.limits import CircuitBreaker, Limits, RateLimiter, RetryPolicy
from xraygpt.curation.llm.prices import Price
from xraygpt.curation.llm.stopping import RunStopped, StopSignal
from xraygpt.models.endpoint.journal import Journal
from xraygpt.models.endpoint.requests import Prepared, Question, RequestFormat

log = logging.getLogger(__name__)
T = TypeVar("T")

_TOKENS_FIELD = "it expects another field for the length of answers: set model.token_limit"
REMEDIES = {
    **COMMAND_REMEDIES,
    "key": "the key is missing, wrong or has no access to this model; model.api_key_env names the "
    "environment variable that contains it",
    "not_found": "no such address or model ({model}): correct model.base_url, which usually ends "
    "in /v1, or model.model",
    "redirect": "the endpoint redirects to another address; set model.base_url to that address",
    "unreachable": "no server is listening there; start it, or correct model.base_url",
    "temperature": "the model does not accept this temperature: set model.omit to [temperature]",
    "seed": "the endpoint does not accept a seed: set model.omit to [seed]",
    "max_tokens": _TOKENS_FIELD,
    "max_completion_tokens": _TOKENS_FIELD,
    "model": "the endpoint has no model with the name given as model.model",
}
_SHORTEN = (
    "; shorten the question, or send smaller images (model.image.max_side) or fewer frames "
    "(model.image.max_frames)"
)


class Session:
    """Answers batches of questions; the answers of all batches share a budget and a journal.

    Args:
        form: The form of requests.
        key: The key of the endpoint.
        limits: Concurrency, limits per minute, and the budget.
        retry_policy: The number of attempts, the waits and the timeout.
        price: The price of tokens; None if cost is not counted.
    """

    def __init__(
        self,
        form: RequestFormat,
        key: str,
        limits: Limits,
        retry_policy: RetryPolicy,
        price: Price | None,
    ) -> None:
        self.form, self.limits, self.retry_policy, self.price = form, limits, retry_policy, price
        self._key = key
        self._failures = FailureClassifier(form.url, form.model, REMEDIES)
        self._breaker = CircuitBreaker(failures=max(20, 2 * limits.concurrency))
        self._loop = _LoopThread()
        self._sdk: Any = None
        self._limiter = RateLimiter(limits.rpm, limits.tpm)
        self._failed: dict[str, str] = {}  # key of a request -> why it has no answer
        self._remarks = Counter[str]()
        self.use_journal(Journal())

    def use_journal(self, journal: Journal) -> None:
        """Use the answers in a journal and its usage so far, and store new ones in it."""
        self.journal = journal
        names = ("model.limits.max_tokens", "model.limits.max_cost")
        self.budget = Budget(journal, self.limits, self.price, names=names)

    def answer(
        self, questions: Sequence[Question], decoding: Mapping[str, Any], max_tokens: int
    ) -> list[str]:
        """Answer questions, in order; answers in the journal are not requested again.

        Args:
            questions: The questions.
            decoding: Request fields for the decoding settings.
            max_tokens: Maximum number of tokens of an answer.

        Raises:
            EndpointError: The endpoint cannot be used, or the budget is used up. All answers that
                arrived are in the journal.
            DataError: A question has no answer; the message names its sample. The others were
                answered.
        """
        run = _Batch(self, decoding, max_tokens)
        answers = self._loop.run(run.answer_all(questions))
        for remark, count in run.remarks.items():
            if not self._remarks[remark]:
                log.warning("an answer %s (further ones are not reported)", remark)
            self._remarks[remark] += count
        return answers

    def caller(self, stop: StopSignal) -> Caller:
        """Return a caller for one batch, which shares its state with those of other batches."""
        if self._sdk is None:
            self._sdk = make_sdk_client(self.form.url, self._key, self.retry_policy.timeout)
        return Caller(
            self._sdk, self._failures, self._limiter, self.retry_policy, self._breaker, stop
        )

    def failure(self, key: str) -> str | None:
        """Return why a request has no answer, if it was sent before in this process."""
        return self._failed.get(key)

    def add_failure(self, key: str, reason: str) -> None:
        """Remember a request that has no answer, so that it is not repeated in this process."""
        self._failed[key] = reason


class _Batch:
    """The state of one batch."""

    def __init__(self, session: Session, decoding: Mapping[str, Any], max_tokens: int) -> None:
        self.session, self.decoding, self.max_tokens = session, decoding, max_tokens
        self.journal, self.budget = session.journal, session.budget
        self.stop = StopSignal()
        self.caller = session.caller(self.stop)
        self.remarks = Counter[str]()
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._fatal: list[Exception] = []
        self._problems: dict[int, DataError] = {}

    async def answer_all(self, questions: Sequence[Question]) -> list[str]:
        answers: list[str] = [""] * len(questions)
        queue = iter(enumerate(questions))

        async def work() -> None:
            for i, question in queue:
                if self.stop.is_set():
                    return
                try:
                    answers[i] = await self._answer(question)
                except RunStopped:
                    return
                except DataError as error:
                    self._problems[i] = error
                except Exception as error:
                    self._fatal.append(error)
                    self.stop.set()
                    return

        count = min(self.session.limits.concurrency, len(questions))
        await asyncio.gather(*(work() for _ in range(count)))
        if self._fatal:
            raise self._explain(self._fatal[0])
        if self._problems:
            raise self._problems[min(self._problems)]
        return answers

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, BudgetExceeded):
            where = self.journal.path
            kept = "" if where is None else f"; all answers so far are kept in {where.parent}"
            return EndpointError(f"{self.budget.exceeded_message()}{kept}")
        return error

    async def _answer(self, question: Question) -> str:
        prepared = await asyncio.to_thread(question.prepare, self.session.form, self.decoding)
        async with self._locks[prepared.key]:  # equal requests are sent once
            stored = self.journal.answers.get(prepared.key)
            if stored is not None:
                return stored
            reason = self.session.failure(prepared.key)
            if reason is None:
                reply = await self._request(prepared)
                if reply.state != "failed":
                    return self._keep(prepared.key, reply)
                reason = reply.reason + (_SHORTEN if TOO_LONG in reply.reason else "")
                self.session.add_failure(prepared.key, reason)
        raise DataError(f"sample {question.sample_id}: the endpoint gave no answer: {reason}")

    async def _request(self, prepared: Prepared) -> Reply:
        budget = self.budget
        reserved = await budget.acquire(self.stop, prepared.estimated_in, self.max_tokens)
        try:
            reply = await self.caller.complete(
                prepared.body, prepared.estimated_in, self.max_tokens // 2, budget.charge_wasted
            )
        finally:
            budget.calibrate(self.caller.token_ratio)
            budget.release(*reserved)
        budget.charge(reply.tokens_in, reply.tokens_out)
        return reply

    def _keep(self, key: str, reply: Reply) -> str:
        text = reply.content.strip()
        if reply.state == "refused":
            self.remarks[f"was refused ({reply.reason}) and counts as empty"] += 1
        elif reply.reason and not text:
            self.remarks[
                "is empty, because the model used up its tokens before it; raise "
                "run.task.generate.max_new_tokens"
            ] += 1
        self.journal.add_answer(key, text)
        return text


class _LoopThread:
    """An event loop in a thread, which works inside notebooks and keeps connections open."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C; no effect if the coroutine has ended
            raise
