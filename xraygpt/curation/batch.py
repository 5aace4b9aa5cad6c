"""The Batch API: many requests as one file, answered within a day, often at a lower price.

What was sent stands in the ledger, so a run that ends while the endpoint works is picked up by the
next one. Answers go through the same checks; repairs and failed lines make the next round.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from xraygpt.common.logging import progress
from xraygpt.curation.client import Client, EndpointError, Released, Reply, body, estimate
from xraygpt.curation.client import read_completion as read_chat
from xraygpt.curation.engine import (
    PICTURE_TOKENS,
    Ended,
    Engine,
    Item,
    judge,
    messages_for,
    on_signals,
    repaired,
)
from xraygpt.curation.ledger import DONE, FAILED, INVALID, REFUSED, Batch, Row
from xraygpt.curation.limits import Pace

log = logging.getLogger(__name__)

MAX_LINES, MAX_BYTES = 50_000, 190_000_000
"""Of one file: the API's limits are 50,000 requests and 200 MB."""
_OVER = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True)
class Line:
    """One request of a batch.

    Attributes:
        item: What it asks about.
        content: First answer, where this is the repair of it.
        reasons: Why that answer cannot stand.
        attempt: How often the endpoint failed this line before.
        tokens_in: Of the calls before.
        tokens_out: Likewise.
    """

    item: Item
    content: str = ""
    reasons: tuple[str, ...] = ()
    attempt: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def state(self) -> list[Any]:
        """For the ledger."""
        return [
            self.item.key, self.content, list(self.reasons), self.attempt, self.tokens_in,
            self.tokens_out,
        ]  # fmt: skip


def run_batches(engine: Engine, items: Sequence[Item], poll_seconds: float) -> Ended:
    """Bring items to a final state by batches.

    Args:
        engine: With ledger, endpoint, task, prompt, limits and price.
        items: Without a final state.
        poll_seconds: Between two looks at a batch.
    """
    engine.budget.batch = True
    return asyncio.run(_Run(engine, items, poll_seconds).run())


class _Run:
    def __init__(self, engine: Engine, items: Sequence[Item], poll_seconds: float) -> None:
        self.engine, self.poll_seconds = engine, poll_seconds
        self.items = {item.key: item for item in items}
        self.ledger, self.prompt, self.task = engine.ledger, engine.prompt, engine.task
        self.stopping = asyncio.Event()
        pace = Pace(engine.limits.rpm, None)
        self.client = Client(
            engine.endpoint, engine.task, pace, engine.patience, engine.breaker, self.stopping
        )
        self.why = Ended()

    async def run(self) -> Ended:
        on_signals(self._stop)
        bar = progress(total=len(self.items), desc="batches", unit="row")
        try:
            await self._rounds(bar)
        except Released:
            pass
        except EndpointError as error:
            self.why = Ended(str(error), error.exit_code)
        finally:
            on_signals(None)
            bar.close()
            await self.client.sdk.close()
        return Ended(self.why.why, self.why.exit_code, self.client.calls)

    def _stop(self, why: Ended) -> None:
        log.warning("%s: batches that were sent go on; the same command picks them up", why.why)
        self.why = why
        self.stopping.set()

    async def _rounds(self, bar: Any) -> None:
        open_batches = [b for b in self.ledger.open_batches() if self._lines(b)]
        sent = [line for b in open_batches for line in self._lines(b)]
        for line in sent:
            self.engine.budget.hold(*self._most(line))
        under_way = {line.item.key for line in sent}
        new = [Line(item) for key, item in self.items.items() if key not in under_way]
        over_budget = self._add(new)
        while open_batches := [b for b in self.ledger.open_batches() if self._lines(b)]:
            for batch in open_batches:
                await self._send(batch)
            again: list[Line] = []
            for batch in [b for b in self.ledger.open_batches() if self._lines(b)]:
                again += await self._collect(batch, bar)
            over_budget = self._add(again) or over_budget
        if over_budget:
            self.why = Ended("the next batch could overstep the budget", 1)

    def _lines(self, batch: Batch) -> list[Line]:
        """Lines of a batch that this run wants; one of another prompt is left alone."""
        known = [s for s in batch.lines if s[0] in self.items]
        return [Line(self.items[k], c, tuple(r), *more) for k, c, r, *more in known]

    def _add(self, lines: Sequence[Line]) -> bool:
        """Write batches into the ledger before they are sent; whether the budget cut some off."""
        kept = []
        for line in lines:
            if not self.engine.budget.reserve(*self._most(line)):
                break
            kept.append(line)
        for chunk in self._chunks(kept):
            self.ledger.start([line.item.key for line in chunk])
            self.ledger.add_batch([line.state() for line in chunk])
        return len(kept) < len(lines)

    def _chunks(self, lines: Sequence[Line]) -> Iterator[list[Line]]:
        """Under the limits of one file."""
        chunk: list[Line] = []
        size = 0
        for line in lines:
            more = len(self._request(line))
            if chunk and (len(chunk) >= MAX_LINES or size + more > MAX_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(line)
            size += more
        if chunk:
            yield chunk

    def _messages(self, line: Line) -> list[dict[str, Any]]:
        messages = messages_for(line.item, self.prompt)
        if not line.reasons:
            return messages
        return repaired(messages, self.prompt, Reply("answered", line.content), line.reasons)

    def _most(self, line: Line) -> tuple[int, int]:
        """Tokens a line is guessed to read and may write."""
        return estimate(self._messages(line), PICTURE_TOKENS), self.task.output_tokens

    def _request(self, line: Line) -> bytes:
        row = {
            "custom_id": f"{line.item.key}-{line.attempt}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body(self.engine.endpoint, self.task, self._messages(line)),
        }
        return json.dumps(row).encode() + b"\n"

    async def _send(self, batch: Batch) -> None:
        """Upload a batch and start it, from wherever an earlier run was stopped."""
        sdk = self.client.sdk
        file, sent = batch.file, batch.batch
        if not file:
            data = b"".join(map(self._request, self._lines(batch)))
            made = await self._patiently(
                lambda headers: sdk.files.create(
                    file=("requests.jsonl", io.BytesIO(data)), purpose="batch",
                    extra_headers=headers,
                )
            )  # fmt: skip
            file = str(made.id)
            self.ledger.set_batch(batch.number, "uploaded", file=file)
        elif not sent:  # stopped between starting it and writing that down?
            listed = await self._patiently(lambda headers: sdk.batches.list(extra_headers=headers))
            sent = next((b.id for b in listed.data if b.input_file_id == file), None)
        if not sent:
            started = await self._patiently(
                lambda headers: sdk.batches.create(
                    input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h",
                    extra_headers=headers,
                )
            )  # fmt: skip
            sent = str(started.id)
        self.ledger.set_batch(batch.number, "sent", batch=sent)

    async def _patiently(self, call: Any) -> Any:
        found, failure = await self.client.patiently(
            call, lambda made: made if hasattr(made, "id") or hasattr(made, "data") else None
        )
        if found is None:
            raise EndpointError(f"{self.engine.endpoint.address()}: batches: {failure.reason}")
        return found

    async def _collect(self, batch: Batch, bar: Any) -> list[Line]:
        """Wait for a batch and write its answers down; what the next round has to ask."""
        sdk = self.client.sdk
        while True:
            found = await self._patiently(
                lambda headers: sdk.batches.retrieve(str(batch.batch), extra_headers=headers)
            )
            if found.status in _OVER:
                break
            counts = found.request_counts
            done = f"{counts.completed} of {counts.total}" if counts else "under way"
            bar.set_postfix_str(f"batch {batch.number}: {found.status}, {done}")
            await self.client.sleep(self.poll_seconds)
        answers: dict[str, Any] = {}
        for name in (found.output_file_id, found.error_file_id):
            if name:
                answers.update(await self._download(name))
        if found.status == "failed" and not answers:
            raise EndpointError(
                f"{self.engine.endpoint.address()}: batch {found.id} was refused as a whole; its "
                "page at the endpoint says why"
            )
        again = []
        for line in self._lines(batch):
            more = self._judge(line, answers.get(f"{line.item.key}-{line.attempt}"))
            if more is None:
                bar.update()
            else:
                again.append(more)
        self.ledger.set_batch(batch.number, "read")
        return again

    async def _download(self, name: str) -> dict[str, Any]:
        """Lines of a result file, by custom_id; one that is no JSON counts as not answered."""
        sdk = self.client.sdk
        content, failure = await self.client.patiently(
            lambda headers: sdk.files.content(name, extra_headers=headers),
            lambda found: getattr(found, "content", None),
        )
        if content is None:
            raise EndpointError(f"{self.engine.endpoint.address()}: batches: {failure.reason}")
        rows = {}
        for line in content.splitlines():
            try:
                row = json.loads(line)
                rows[row["custom_id"]] = row["response"]
            except (ValueError, KeyError, TypeError):
                continue
        return rows

    def _judge(self, line: Line, response: Any) -> Line | None:
        """Write down what became of a line, or say what to ask next."""
        most = self._most(line)
        reply = _reply(response, most[0])
        self.engine.budget.settle(most, reply)
        if reply is None:
            if line.attempt + 1 < self.engine.patience.attempts:
                return Line(
                    line.item, line.content, line.reasons, line.attempt + 1, line.tokens_in,
                    line.tokens_out,
                )  # fmt: skip
            reply = Reply("failed", reason=f"{line.attempt + 1} batches: no answer")
        tokens = (line.tokens_in + reply.tokens_in, line.tokens_out + reply.tokens_out)
        answer, reasons = None, [reply.reason]
        if reply.state == "answered":
            answer, reasons = judge(self.task, line.item, reply)
            if reasons and not line.reasons:
                return Line(line.item, reply.content, tuple(reasons), 0, *tokens)
        state = {"refused": REFUSED, "failed": FAILED}.get(reply.state, INVALID)
        state = DONE if answer is not None and not reasons else state
        first = "; ".join(line.reasons)
        row = Row(
            line.item.key,
            line.item.source_id,
            state,
            "" if state == DONE else "; ".join(reasons),
            answer.model_dump_json() if answer is not None and state == DONE else None,
            first,
            self.prompt.repair_sha256 if first else "",
            *tokens,
        )
        self.ledger.finish(row, self.engine.endpoint.model)
        self.engine.states[row.state] += 1
        return None


def _reply(response: Any, guess: int) -> Reply | None:
    """A line's response as a `Reply`; None if the endpoint failed it."""
    if not isinstance(response, dict) or response.get("status_code") != 200:
        return None
    return read_chat(_object(response.get("body")), guess)


def _object(value: Any) -> Any:
    """JSON with attributes, as the SDK gives it for single calls."""
    if isinstance(value, dict):
        return SimpleNamespace(**{str(k): _object(v) for k, v in value.items()})
    return [_object(v) for v in value] if isinstance(value, list) else value
