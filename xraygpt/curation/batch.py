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

from xraygpt.common.errors import InputError
from xraygpt.common.logging import progress
from xraygpt.curation.client import CODE, Client, EndpointError, Released, Reply, body
from xraygpt.curation.client import read_completion as read_chat
from xraygpt.curation.engine import (
    Ended,
    Engine,
    Item,
    finished,
    guessed_tokens,
    judge,
    messages_for,
    on_signals,
    repaired,
)
from xraygpt.curation.ledger import Batch, Draft
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
        draft: The first answer, where this is its repair.
        attempt: How often the endpoint failed this line before.
    """

    item: Item
    draft: Draft | None = None
    attempt: int = 0

    def state(self) -> list[Any]:
        """For the ledger."""
        return [self.item.key, self.draft.dump() if self.draft else None, self.attempt]


def run_batches(engine: Engine, items: Sequence[Item], poll_seconds: float) -> Ended:
    """Bring items to a final state by batches.

    Args:
        engine: With ledger, endpoint, task, prompt, limits and price.
        items: Without a final state.
        poll_seconds: Between two looks at a batch.

    Raises:
        InputError: The ledger has batches at another endpoint.
    """
    engine.budget.batch = True
    engine.drafts = engine.ledger.drafts()
    here = engine.endpoint.address()
    elsewhere = {b.address for b in engine.ledger.open_batches()} - {here}
    if elsewhere:
        raise InputError(f"batches of this folder are at {elsewhere.pop()}; collect them there")
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
        self.slow = 10 * engine.patience.timeout  # seconds; files are large
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
        sent = [line for b in self.ledger.open_batches() for line in self._lines(b)]
        for line in sent:
            self.engine.budget.hold(*self._most(line))
        under_way = {line.item.key for line in sent}
        drafts = self.engine.drafts
        with self.ledger.transaction():
            self._add(
                [
                    Line(item, drafts.get(key))
                    for key, item in self.items.items()
                    if key not in under_way
                ]
            )
        while open_batches := self.ledger.open_batches():
            for batch in open_batches:
                await self._send(batch)
            for batch in self.ledger.open_batches():
                await self._collect(batch, bar)

    def _lines(self, batch: Batch) -> list[Line]:
        """Lines of a batch that this run wants."""
        known = [s for s in batch.lines if s[0] in self.items]
        return [Line(self.items[k], d and Draft.load(d), a) for k, d, a in known]

    def _add(self, lines: Sequence[Line]) -> None:
        """Write batches into the ledger before they are sent, as far as the budget goes."""
        kept = []
        for line in lines:
            most = self._most(line)
            if not self.engine.budget.fits(*most):
                self.why = Ended(self.engine.budget.spoken(), 1)
                break
            self.engine.budget.hold(*most)
            kept.append(line)
        for chunk in self._chunks(kept):
            self.ledger.start([line.item.key for line in chunk])
            address = self.engine.endpoint.address()
            self.ledger.add_batch(address, [line.state() for line in chunk])

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
        return repaired(messages, self.prompt, line.draft) if line.draft else messages

    def _most(self, line: Line) -> tuple[int, int]:
        """Tokens a line may take at most."""
        guess = guessed_tokens(self.task, self._messages(line))
        return self.engine.budget.most(guess, self.task.output_tokens)

    def _request(self, line: Line) -> bytes:
        row = {
            "custom_id": f"{line.item.key}-{line.attempt}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body(self.engine.endpoint, self.task, self._messages(line)),
        }
        return json.dumps(row).encode() + b"\n"

    def _file(self, batch: Batch) -> bytes:
        return b"".join(map(self._request, self._lines(batch)))

    async def _send(self, batch: Batch) -> None:
        """Upload a batch and start it, from wherever an earlier run was stopped."""
        if batch.batch:
            return
        sdk, file = self.client.sdk, batch.file
        sent = None
        if not file:
            data = await asyncio.to_thread(self._file, batch)
            if not data:  # of another prompt, and never sent
                self.ledger.set_batch(batch.number, "read")
                return
            made = await self._patiently(
                lambda headers: sdk.files.create(
                    file=("requests.jsonl", io.BytesIO(data)), purpose="batch",
                    extra_headers=headers, timeout=self.slow,
                ),
                timeout=self.slow,
            )  # fmt: skip
            file = str(made.id)
            self.ledger.set_batch(batch.number, "uploaded", file=file)
        else:  # stopped between starting it and writing that down?
            sent = await self._started(file)
        if not sent:
            # Once: nobody knows whether a call without an answer has started one.
            started = await self._patiently(
                lambda headers: sdk.batches.create(
                    input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h",
                    extra_headers=headers,
                ),
                attempts=1,
            )  # fmt: skip
            sent = str(started.id)
        self.ledger.set_batch(batch.number, "sent", batch=sent)

    async def _started(self, file: str) -> str | None:
        """The batch that was made of a file, among the newest thousand."""
        after: dict[str, Any] = {}
        for _ in range(10):
            page = await self._patiently(
                lambda headers: self.client.sdk.batches.list(
                    limit=100, extra_headers=headers, **after
                )
            )
            for made in page.data:
                if made.input_file_id == file:
                    return str(made.id)
            if not page.data or not getattr(page, "has_more", False):
                break
            after["after"] = page.data[-1].id
        return None

    async def _patiently(self, call: Any, **options: Any) -> Any:
        found, failure = await self.client.patiently(
            call,
            lambda made: made if hasattr(made, "id") or hasattr(made, "data") else None,
            **options,
        )
        if found is None:
            raise EndpointError(f"{self.engine.endpoint.address()}: batches: {failure.reason}")
        return found

    async def _collect(self, batch: Batch, bar: Any) -> None:
        """Wait for a batch, write its answers down and add what is to be asked next."""
        answers = await self._answers(batch, bar)
        again = []
        with self.ledger.transaction():
            for key, _, attempt in batch.lines:
                if key not in self.items:  # of another prompt: paid for all the same
                    reply = _reply(answers.get(f"{key}-{attempt}"), 0)
                    if reply is not None:
                        self.engine.budget.charge(reply.tokens_in, reply.tokens_out)
            for line in self._lines(batch):
                more = self._judge(line, answers.get(f"{line.item.key}-{line.attempt}"))
                if more is None:
                    bar.update()
                else:
                    again.append(more)
            self._add(again)
            self.ledger.set_batch(batch.number, "read")

    async def _answers(self, batch: Batch, bar: Any) -> dict[str, Any]:
        """Responses of a batch by custom_id, once it is over.

        Raises:
            EndpointError: It was refused or is gone; its rows are given back.
        """
        answers: dict[str, Any] = {}
        try:
            found = await self._finished(batch, bar)
            for name in (found.output_file_id, found.error_file_id):
                if name:
                    answers.update(await self._download(name))
            lost = f"was refused as a whole{_code(found)}" if found.status == "failed" else ""
        except EndpointError as error:
            if error.status != 404:
                raise
            lost = "is not there any more"
        if not lost or answers:
            return answers
        with self.ledger.transaction():
            self.ledger.set_batch(batch.number, "read")
            self.ledger.release([line[0] for line in batch.lines])
        raise EndpointError(
            f"{batch.address}: batch {batch.batch} {lost}; its rows go back, the same command "
            "sends them anew"
        )

    async def _finished(self, batch: Batch, bar: Any) -> Any:
        while True:
            found = await self._patiently(
                lambda headers: self.client.sdk.batches.retrieve(
                    str(batch.batch), extra_headers=headers
                )
            )
            status = getattr(found, "status", None)
            if status in _OVER:
                return found
            counts = getattr(found, "request_counts", None)
            done = f"{counts.completed} of {counts.total}" if counts else "under way"
            bar.set_postfix_str(f"batch {batch.number}: {status}, {done}")
            await self.client.sleep(self.poll_seconds)

    async def _download(self, name: str) -> dict[str, Any]:
        """Lines of a result file, by custom_id; one that is no JSON counts as not answered."""
        sdk = self.client.sdk
        content, failure = await self.client.patiently(
            lambda headers: sdk.files.content(name, extra_headers=headers, timeout=self.slow),
            lambda found: getattr(found, "content", None),
            timeout=self.slow,
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
        self.engine.budget.hold(*most, -1)
        reply = _reply(response, most[0])
        if reply is None:
            if line.attempt + 1 < self.engine.patience.attempts:
                return Line(line.item, line.draft, line.attempt + 1)
            reply = Reply("failed", reason=f"{line.attempt + 1} batches: no answer")
        self.engine.budget.charge(reply.tokens_in, reply.tokens_out)
        answer, reasons = judge(self.task, line.item, reply)
        if reply.state == "answered" and reasons and line.draft is None:
            draft = Draft(reply.content, tuple(reasons), reply.tokens_in, reply.tokens_out)
            self.ledger.keep_draft(line.item.key, draft)
            return Line(line.item, draft)
        row = finished(self.prompt, line.item, reply, answer, reasons, line.draft)
        self.ledger.finish(row, self.engine.endpoint.model)
        self.engine.states[row.state] += 1
        return None


def _code(found: Any) -> str:
    """Why a batch was refused, as a word of the endpoint's, in brackets."""
    errors = getattr(getattr(found, "errors", None), "data", None) or []
    codes = [str(getattr(error, "code", "") or "") for error in errors]
    return next((f" ({code})" for code in codes if CODE.match(code)), "")


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
