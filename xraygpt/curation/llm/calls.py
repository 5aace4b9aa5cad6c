"""Rewriting by single, concurrent calls; each answer is checked and saved on arrival."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from xraygpt.common.logging import progress
from xraygpt.curation.llm.budget import BudgetExceeded
from xraygpt.curation.llm.completions import Reply
from xraygpt.curation.llm.failures import EndpointError
from xraygpt.curation.llm.items import (
    Item,
    build_messages,
    build_repair_messages,
    check_reply,
    estimate_request_tokens,
    final_row,
)
from xraygpt.curation.llm.ledger_rows import DONE, Draft, Row
from xraygpt.curation.llm.limits import RateLimiter
from xraygpt.curation.llm.run_context import RunContext
from xraygpt.curation.llm.stopping import RunResult, RunStopped, StopSignal, handle_signals

log = logging.getLogger(__name__)

_BAR = "{desc} {percentage:3.0f} % {n_fmt}/{total_fmt}, {rate_fmt}, left {remaining}{postfix}"


def run_calls(context: RunContext, items: Sequence[Item]) -> RunResult:
    """Process items by single calls until each is done, refused, invalid or failed."""
    return asyncio.run(CallRunner(context, items).run())


class CallRunner:
    """Runs one worker for each call that may be concurrent.

    Args:
        context: The settings and the state of the run.
        items: Items without a final state.
    """

    def __init__(self, context: RunContext, items: Sequence[Item]) -> None:
        self.context, self.items = context, items
        self.settings, self.ledger, self.budget = context.settings, context.ledger, context.budget
        self.stop = StopSignal()
        limits = self.settings.limits
        self.client = context.create_client(RateLimiter(limits.rpm, limits.tpm), self.stop)
        self._queue = iter(items)
        self._bar: Any = None
        self._workers: list[asyncio.Future[None]] = []
        self._results: list[RunResult] = []  # why the run stops, in order of occurrence

    async def run(self) -> RunResult:
        """Process all items, or stop early, and return how the run ended."""
        self._bar = progress(
            total=len(self.items), desc=self.settings.task.name, unit="row", bar_format=_BAR
        )
        count = min(self.settings.limits.concurrency, len(self.items))
        self._workers = [asyncio.ensure_future(self._work()) for _ in range(count)]
        handle_signals(self._stop)
        try:
            await asyncio.gather(*self._workers)
        except asyncio.CancelledError:
            pass
        finally:
            handle_signals(None)
            self._bar.close()
            await self.client.sdk.close()
        result = self._results[0] if self._results else RunResult()
        return RunResult(result.stop_reason, result.exit_code, self.client.calls)

    def _stop(self, result: RunResult) -> None:
        if result.is_interrupt and self.stop.is_set():  # interrupted while stopping
            for worker in self._workers:
                worker.cancel()
        elif result.is_interrupt:
            log.warning(
                "%s: finishing the calls in progress; interrupt again to cancel them",
                result.stop_reason,
            )
        self._results.append(result)
        self.stop.set()

    async def _work(self) -> None:
        for item in self._queue:
            if self.stop.is_set():
                return
            try:
                row = await self._process(item)
            except RunStopped:
                self.ledger.release([item.key])
                return
            except BudgetExceeded:
                self.ledger.release([item.key])
                self._stop(RunResult(self.budget.exceeded_message(), 1))
                return
            except EndpointError as error:
                self.ledger.release([item.key])
                self._stop(RunResult(str(error), error.exit_code))
                return
            self.context.finish(row)
            self._bar.set_postfix_str(self._status(), refresh=False)
            self._bar.update()

    def _status(self) -> str:
        states = self.context.states
        rejected = sum(n for state, n in states.items() if state != DONE)
        cost = f", cost {self.budget.cost:.2f}" if self.settings.price else ""
        return f"{states[DONE]} done, {rejected} without text, {self.budget.tokens:,} tokens{cost}"

    async def _process(self, item: Item) -> Row:
        """Request an answer, and one repair if the answer is rejected."""
        task, prompt = self.settings.task, self.settings.prompt
        if item.picture is None:
            messages = build_messages(item, prompt)
        else:
            messages = await asyncio.to_thread(build_messages, item, prompt)
        draft = self.context.drafts.get(item.key)
        if draft is None:
            reply = await self._call(item, messages)
            answer, reasons = check_reply(task, item, reply)
            if reply.state != "answered" or not reasons:
                return final_row(prompt, item, reply, answer, reasons, None)
            draft = Draft(reply.content, tuple(reasons), reply.tokens_in, reply.tokens_out)
            self.ledger.save_draft(item.key, draft)
        reply = await self._call(item, build_repair_messages(messages, prompt, draft))
        answer, reasons = check_reply(task, item, reply)
        return final_row(prompt, item, reply, answer, reasons, draft)

    async def _call(self, item: Item, messages: list[dict[str, Any]]) -> Reply:
        task = self.settings.task
        estimated = estimate_request_tokens(task, messages)
        reserved = await self.budget.acquire(self.stop, estimated, task.output_tokens)
        self.ledger.reserve(item.key, *reserved, self.budget.cost_of(*reserved))
        try:
            reply = await self.client.ask(messages, estimated, self.budget.charge_wasted)
        except asyncio.CancelledError:
            raise  # outcome unknown: the reservation is charged when the ledger is next opened
        except BaseException:
            self.ledger.clear_reservation(item.key)
            raise
        finally:
            self.budget.calibrate(self.client.token_ratio)
            self.budget.release(*reserved)
        with self.ledger.transaction():
            self.ledger.clear_reservation(item.key)
            self.budget.charge(reply.tokens_in, reply.tokens_out)
        return reply
