"""Rewriting with the Batch API: many requests in one file, answered within a day, often cheaper.

The ledger records what was sent, so that a run which ended while the endpoint was working is
continued by the next run. The answers undergo the same checks as those of single calls. Repairs and
failed lines form the next round of batches.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xraygpt.common.errors import InputError
from xraygpt.common.logging import progress
from xraygpt.curation.llm.batch_api import COMPLETIONS_URL, BatchApi, parse_response
from xraygpt.curation.llm.completions import Reply, request_body
from xraygpt.curation.llm.failures import EndpointError
from xraygpt.curation.llm.items import (
    Item,
    build_messages,
    check_reply,
    estimate_request_tokens,
    final_row,
)
from xraygpt.curation.llm.ledger_rows import Batch, Draft
from xraygpt.curation.llm.limits import RateLimiter
from xraygpt.curation.llm.run_context import RunContext
from xraygpt.curation.llm.stopping import RunResult, RunStopped, StopSignal, handle_signals

log = logging.getLogger(__name__)

MAX_LINES, MAX_BYTES = 50_000, 190_000_000
"""Limits per file; the API allows 50,000 requests and 200 MB."""


@dataclass(frozen=True)
class BatchLine:
    """One request in a batch.

    Attributes:
        item: The item.
        draft: The rejected first answer, if the line requests its repair.
        attempt: How many times the endpoint has failed to answer this line.
    """

    item: Item
    draft: Draft | None = None
    attempt: int = 0

    @property
    def custom_id(self) -> str:
        """The id of the line in the result files."""
        return f"{self.item.key}-{self.attempt}"

    def dump(self) -> list[Any]:
        """Serialise the line for the ledger."""
        return [self.item.key, self.draft.dump() if self.draft else None, self.attempt]


def run_batches(context: RunContext, items: Sequence[Item]) -> RunResult:
    """Process items by batches until each has a final state.

    Raises:
        InputError: The ledger lists batches at another endpoint.
    """
    address = context.settings.endpoint.address()
    others = {b.address for b in context.ledger.open_batches()} - {address}
    if others:
        raise InputError(
            f"batches from this folder were sent to {others.pop()}; collect them from there"
        )
    return asyncio.run(BatchRunner(context, items).run())


class BatchRunner:
    """Sends batches and collects their answers, round by round.

    Args:
        context: The settings and the state of the run.
        items: Items without a final state.
    """

    def __init__(self, context: RunContext, items: Sequence[Item]) -> None:
        self.context, self.settings = context, context.settings
        self.ledger, self.budget = context.ledger, context.budget
        self.items = {item.key: item for item in items}
        self.address = self.settings.endpoint.address()
        self.stop = StopSignal()
        limiter = RateLimiter(self.settings.limits.rpm, None)
        self.client = context.create_client(limiter, self.stop)
        self.api = BatchApi(self.client, self.settings.poll_seconds)
        self._result = RunResult()

    async def run(self) -> RunResult:
        """Process all items, or stop early, and return how the run ended."""
        handle_signals(self._stop)
        bar = progress(total=len(self.items), desc="batches", unit="row")
        try:
            await self._run_rounds(bar)
        except RunStopped:
            pass
        except EndpointError as error:
            self._result = RunResult(str(error), error.exit_code)
        finally:
            handle_signals(None)
            bar.close()
            await self.client.sdk.close()
        return RunResult(self._result.stop_reason, self._result.exit_code, self.client.calls)

    def _stop(self, result: RunResult) -> None:
        log.warning(
            "%s: batches already sent continue; run the same command again to collect them",
            result.stop_reason,
        )
        self._result = result
        self.stop.set()

    async def _run_rounds(self, bar: Any) -> None:
        in_progress = [line for b in self.ledger.open_batches() for line in self._lines(b)]
        for line in in_progress:
            self.budget.reserve(*self._max_usage(line))
        keys = {line.item.key for line in in_progress}
        drafts = self.context.drafts
        with self.ledger.transaction():
            self._add(
                [
                    BatchLine(item, drafts.get(key))
                    for key, item in self.items.items()
                    if key not in keys
                ]
            )
        while open_batches := self.ledger.open_batches():
            for batch in open_batches:
                await self._send(batch)
            for batch in self.ledger.open_batches():
                await self._collect(batch, bar)

    def _lines(self, batch: Batch) -> list[BatchLine]:
        """Return the lines of a batch whose items belong to this run."""
        return [
            BatchLine(self.items[key], draft and Draft.load(draft), attempt)
            for key, draft, attempt in batch.lines
            if key in self.items
        ]

    def _add(self, lines: Sequence[BatchLine]) -> None:
        """Add batches to the ledger before they are sent, as far as the budget allows."""
        affordable = []
        for line in lines:
            usage = self._max_usage(line)
            if not self.budget.fits(*usage):
                self._result = RunResult(self.budget.exceeded_message(), 1)
                break
            self.budget.reserve(*usage)
            affordable.append(line)
        for chunk in self._chunks(affordable):
            self.ledger.mark_in_flight([line.item.key for line in chunk])
            self.ledger.add_batch(self.address, [line.dump() for line in chunk])

    def _chunks(self, lines: Sequence[BatchLine]) -> Iterator[list[BatchLine]]:
        """Divide lines into chunks, each of which fits into one file."""
        chunk: list[BatchLine] = []
        size = 0
        for line in lines:
            line_size = len(self._request(line))
            if chunk and (len(chunk) >= MAX_LINES or size + line_size > MAX_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(line)
            size += line_size
        if chunk:
            yield chunk

    def _messages(self, line: BatchLine) -> list[dict[str, Any]]:
        return build_messages(line.item, self.settings.prompt, line.draft)

    def _max_usage(self, line: BatchLine) -> tuple[int, int]:
        task = self.settings.task
        estimated = estimate_request_tokens(task, self._messages(line))
        return self.budget.max_usage(estimated, task.output_tokens)

    def _request(self, line: BatchLine) -> bytes:
        row = {
            "custom_id": line.custom_id,
            "method": "POST",
            "url": COMPLETIONS_URL,
            "body": request_body(self.settings.endpoint, self.settings.task, self._messages(line)),
        }
        return json.dumps(row).encode() + b"\n"

    def _requests(self, batch: Batch) -> bytes:
        return b"".join(map(self._request, self._lines(batch)))

    async def _send(self, batch: Batch) -> None:
        """Upload and start a batch, continuing where an earlier run stopped."""
        if batch.batch_id:
            return
        file_id, batch_id = batch.file_id, None
        if file_id:  # an earlier run may have stopped after starting the batch
            batch_id = await self.api.find(file_id)
        else:
            data = await asyncio.to_thread(self._requests, batch)
            if not data:  # the batch belongs to another prompt and was never sent
                self.ledger.update_batch(batch.number, "read")
                return
            file_id = await self.api.upload(data)
            self.ledger.update_batch(batch.number, "uploaded", file_id=file_id)
        if not batch_id:
            batch_id = await self.api.start(file_id)
        self.ledger.update_batch(batch.number, "sent", batch_id=batch_id)

    async def _collect(self, batch: Batch, bar: Any) -> None:
        """Wait for a batch, save its answers and add the lines to send next."""
        responses = await self._responses(batch, bar)
        next_lines = []
        with self.ledger.transaction():
            for key, _, attempt in batch.lines:
                if key not in self.items:  # it belongs to another prompt, but costs the same
                    reply = parse_response(responses.get(f"{key}-{attempt}"), 0)
                    if reply is not None:
                        self.budget.charge(reply.tokens_in, reply.tokens_out)
            for line in self._lines(batch):
                next_line = self._record(line, responses.get(line.custom_id))
                if next_line is None:
                    bar.update()
                else:
                    next_lines.append(next_line)
            self._add(next_lines)
            self.ledger.update_batch(batch.number, "read")

    async def _responses(self, batch: Batch, bar: Any) -> dict[str, Any]:
        """Wait for a batch and return its responses by custom_id.

        Raises:
            EndpointError: The batch was refused or no longer exists; its rows are released.
        """
        responses, problem = await self.api.collect(batch, bar.set_postfix_str)
        if responses or not problem:
            return responses
        with self.ledger.transaction():
            self.ledger.update_batch(batch.number, "read")
            self.ledger.release([line[0] for line in batch.lines])
        raise EndpointError(
            f"{batch.address}: batch {batch.batch_id} {problem}; run the same command again to "
            "send its rows in a new batch"
        )

    def _record(self, line: BatchLine, response: Any) -> BatchLine | None:
        """Save the final state of a line, or return the line to send next."""
        usage = self._max_usage(line)
        self.budget.release(*usage)
        reply = parse_response(response, usage[0])
        if reply is None:
            if line.attempt + 1 < self.settings.retry_policy.max_attempts:
                return BatchLine(line.item, line.draft, line.attempt + 1)
            reply = Reply("failed", reason=f"{line.attempt + 1} batches: no answer")
        self.budget.charge(reply.tokens_in, reply.tokens_out)
        answer, reasons = check_reply(self.settings.task, line.item, reply)
        if reply.state == "answered" and reasons and line.draft is None:
            draft = Draft(reply.content, tuple(reasons), reply.tokens_in, reply.tokens_out)
            self.ledger.save_draft(line.item.key, draft)
            return BatchLine(line.item, draft)
        prompt = self.settings.prompt
        self.context.finish(final_row(prompt, line.item, reply, answer, reasons, line.draft))
        return None
