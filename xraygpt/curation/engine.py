"""Asks a language model about every item: many at once, each answer checked and written down."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import math
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from xraygpt.common.logging import progress
from xraygpt.curation.client import Client, EndpointError, Released, Reply, estimate
from xraygpt.curation.endpoint import Endpoint, Price
from xraygpt.curation.ledger import (
    DONE,
    FAILED,
    INVALID,
    REFUSED,
    Draft,
    Ledger,
    Row,
    row_key,
)
from xraygpt.curation.limits import Breaker, Pace, Patience
from xraygpt.curation.prompts import Prompt
from xraygpt.curation.tasks import Task
from xraygpt.media.pixels import read_image

log = logging.getLogger(__name__)

_BAR = "{desc} {percentage:3.0f} % {n_fmt}/{total_fmt}, {rate_fmt}, left {remaining}{postfix}"
PICTURE_SIDE = 1024
"""Pixels of the longer side of a picture that is sent."""
PICTURE_TOKENS = 765
"""Tokens such a picture is guessed to cost, as GPT-4o counts 1024×1024."""


@dataclass(frozen=True)
class Item:
    """One thing to ask about: a report, or a picture with its notes.

    Attributes:
        key: Of its row in the ledger.
        source_id: Of the report; for a picture its name follows after a slash.
        sections: Heading -> text, as the prompt sees them.
        source: Text the answer is held against.
        picture: Goes along, if the task sees pictures.
    """

    key: str
    source_id: str
    sections: dict[str, str]
    source: str
    picture: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may take."""

    concurrency: int = 32
    """Most calls at once."""
    rpm: float | None = None
    """Requests a minute."""
    tpm: float | None = None
    """Tokens a minute, read and written."""
    max_tokens: int | None = None
    """Tokens over all runs on this folder."""
    max_money: float | None = None
    """Of the price file's currency, over all runs on this folder."""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        why: Empty if every item has its final state; else what stopped it.
        exit_code: 0, or as `common.errors` has it.
        calls: Sent in this run.
    """

    why: str = ""
    exit_code: int = 0
    calls: int = 0


class Budget:
    """Keeps calls from overstepping; what is under way counts at its most.

    What a call reads is guessed from its characters. Where there is a budget the first call goes
    alone, twice its guess set aside; then as much as the endpoint was seen to count at most, and a
    tenth more. What a call writes is limited by the request itself.
    """

    def __init__(self, ledger: Ledger, limits: Limits, price: Price | None, batch: bool) -> None:
        self.ledger, self.limits, self.price, self.batch = ledger, limits, price, batch
        spent = ledger.spent()
        self.tokens, self.money = spent.tokens, spent.money
        self.factor, self._known = 2.0, False
        self._held_tokens, self._held_money, self._held = 0, 0.0, 0
        self._freed = asyncio.Event()

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Money; 0 without a price."""
        return self.price.of(tokens_in, tokens_out, self.batch) if self.price else 0.0

    def spoken(self) -> str:
        """What is used up and what to do, for people."""
        limits = self.limits
        said = []
        if limits.max_tokens is not None:
            said.append(f"{self.tokens:,} of --max-tokens {limits.max_tokens:,}")
        if limits.max_money is not None:
            said.append(f"{self.money:.2f} of --max-usd {limits.max_money:.2f}")
        return (
            f"the next call could overstep the budget ({', '.join(said)} are used over all runs on "
            "this folder): raise it to go on"
        )

    def learn(self, ratio: float) -> None:
        """The largest ratio of tokens read, counted to guessed, that was seen so far."""
        if ratio:
            self.factor, self._known = 1.1 * ratio, True

    def most(self, guessed_in: int, output_tokens: int) -> tuple[int, int]:
        """What is set aside for a call."""
        return math.ceil(self.factor * guessed_in), output_tokens

    def fits(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether so much is left beside what is under way."""
        tokens = self.tokens + self._held_tokens + tokens_in + tokens_out
        money = self.money + self._held_money + self.cost(tokens_in, tokens_out)
        limits = self.limits
        return (limits.max_tokens is None or tokens <= limits.max_tokens) and (
            limits.max_money is None or money <= limits.max_money
        )

    def hold(self, tokens_in: int, tokens_out: int, sign: int = 1) -> None:
        """Count a call as under way, or with -1 as over."""
        self._held_tokens += sign * (tokens_in + tokens_out)
        self._held_money += sign * self.cost(tokens_in, tokens_out)
        self._held += sign
        if sign < 0:
            self._freed.set()

    async def take(self, client: Client, guessed_in: int, output_tokens: int) -> tuple[int, int]:
        """Hold what a call may take, as soon as calls under way have left enough.

        Raises:
            OverBudget: Nothing is under way any more and it is not enough.
            Released: The run is stopping.
        """
        limited = self.limits.max_tokens is not None or self.limits.max_money is not None
        while True:
            most = self.most(guessed_in, output_tokens)
            alone = limited and not self._known  # nothing is known of how this endpoint counts
            if self.fits(*most) and not (alone and self._held):
                self.hold(*most)
                return most
            if not self._held:
                raise OverBudget
            self._freed.clear()
            await client.unless_stopped(self._freed.wait())

    def charge(self, tokens_in: int, tokens_out: int) -> None:
        """Count what a call took."""
        money = self.cost(tokens_in, tokens_out)
        self.tokens += tokens_in + tokens_out
        self.money += money
        if tokens_in or tokens_out:
            self.ledger.spend(tokens_in, tokens_out, money)

    def lose(self, tokens_in: int, tokens_out: int) -> None:
        """Count a call that gave nothing.

        Raises:
            OverBudget: There is not enough left to try again.
        """
        self.charge(tokens_in, tokens_out)
        if not self.fits(0, 0):
            raise OverBudget


class OverBudget(Exception):
    """The next call could overstep --max-usd or --max-tokens."""


def item_key(
    endpoint: Endpoint,
    task: Task,
    prompt: Prompt,
    source_id: str,
    sections: dict[str, str],
    picture_sha256: str = "",
) -> str:
    """Hash of all that an answer depends on."""
    return row_key(
        prompt=prompt.sha256,
        version=prompt.version,
        task=task.name,
        schema=task.schema(),
        model=endpoint.model,
        decoding=endpoint.decoding(task.output_tokens),
        source_id=source_id,
        source=sections,
        picture=picture_sha256,
    )


def messages_for(item: Item, prompt: Prompt) -> list[dict[str, Any]]:
    """What is sent for an item."""
    text = prompt.ask(item.sections)
    content: Any = text
    if item.picture is not None:
        content = [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": picture_url(item.picture)}},
        ]
    return [{"role": "system", "content": prompt.system}, {"role": "user", "content": content}]


def picture_url(path: Path, side: int = PICTURE_SIDE) -> str:
    """A picture as the data URL of a JPEG, its longer side at most `side` pixels."""
    pixels = read_image(path).pixels
    image = Image.fromarray((pixels * 255).round().astype("uint8"))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def judge(task: Task, item: Item, reply: Reply) -> tuple[Any, list[str]]:
    """An answer and why it cannot stand; no reasons if it can."""
    if reply.state != "answered" or reply.reason:
        return None, [reply.reason]
    if not reply.content.strip():
        return None, ["the answer is empty"]
    answer, reasons = task.read(reply.content)
    return answer, reasons or task.problems(item.source, answer)


def repaired(messages: list[dict[str, Any]], prompt: Prompt, draft: Draft) -> list[dict[str, Any]]:
    """The messages of the one repair call."""
    return [
        *messages,
        {"role": "assistant", "content": draft.content or "(empty)"},
        {"role": "user", "content": prompt.ask_again(draft.reasons)},
    ]


class Engine:
    """Brings every item to a final state: done, refused, invalid or failed.

    Args:
        ledger: Open; its rows of the items are planned.
        endpoint: Whom to ask.
        task: What for.
        prompt: In which words.
        limits: Concurrency, pace, budget.
        patience: Retries and waits.
        price: For the budget and the display.
        breaker: Opens when every call fails; the default suits the concurrency.
    """

    def __init__(
        self,
        ledger: Ledger,
        endpoint: Endpoint,
        task: Task,
        prompt: Prompt,
        limits: Limits,
        patience: Patience,
        price: Price | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.ledger, self.endpoint, self.task, self.prompt = ledger, endpoint, task, prompt
        self.limits, self.patience, self.price = limits, patience, price
        self.breaker = breaker or Breaker(failures=max(20, 2 * limits.concurrency))
        self.budget = Budget(ledger, limits, price, batch=False)
        self.drafts: dict[str, Draft] = {}
        self.states: Counter[str] = Counter()
        self._why: list[Ended] = []

    def run(self, items: Sequence[Item]) -> Ended:
        """Ask about items that have no final state yet."""
        self.drafts = self.ledger.drafts()
        return asyncio.run(self._run(items))

    async def _run(self, items: Sequence[Item]) -> Ended:
        stopping = asyncio.Event()
        pace = Pace(self.limits.rpm, self.limits.tpm)
        client = Client(self.endpoint, self.task, pace, self.patience, self.breaker, stopping)
        queue = iter(items)
        bar = progress(total=len(items), desc=self.task.name, unit="row", bar_format=_BAR)
        count = min(self.limits.concurrency, len(items))
        workers = [
            asyncio.ensure_future(self._worker(client, queue, stopping, bar)) for _ in range(count)
        ]
        on_signals(lambda why: self._stop(stopping, why, workers))
        try:
            await asyncio.gather(*workers)
        except asyncio.CancelledError:
            pass
        finally:
            on_signals(None)
            bar.close()
            await client.sdk.close()
        ended = self._why[0] if self._why else Ended()
        return Ended(ended.why, ended.exit_code, client.calls)

    def _stop(
        self, stopping: asyncio.Event, why: Ended, workers: Sequence[asyncio.Future[None]] = ()
    ) -> None:
        if stopping.is_set() and why.exit_code > 100:  # a second signal
            for worker in workers:
                worker.cancel()
        elif why.exit_code > 100:
            log.warning("%s: finishing the calls under way; once more drops them", why.why)
        self._why.append(why)
        stopping.set()

    async def _worker(
        self, client: Client, queue: Iterator[Item], stopping: asyncio.Event, bar: Any
    ) -> None:
        for item in queue:
            if stopping.is_set():
                return
            try:
                row = await self._row(client, item)
            except Released:
                self.ledger.release([item.key])
                return
            except OverBudget:
                self.ledger.release([item.key])
                self._stop(stopping, Ended(self.budget.spoken(), 1))
                return
            except EndpointError as error:
                self.ledger.release([item.key])
                self._stop(stopping, Ended(str(error), error.exit_code))
                return
            self.ledger.finish(row, self.endpoint.model)
            self.states[row.state] += 1
            bar.set_postfix_str(self._spoken(), refresh=False)
            bar.update()

    def _spoken(self) -> str:
        """Counts and spending, for the bar."""
        left = sum(n for state, n in self.states.items() if state != DONE)
        money = f", spent {self.budget.money:.2f}" if self.price else ""
        return f"{self.states[DONE]} done, {left} held back, {self.budget.tokens:,} tokens{money}"

    async def _row(self, client: Client, item: Item) -> Row:
        """Ask, check, ask once more with the reasons, and say what became of it."""
        if item.picture is None:
            messages = messages_for(item, self.prompt)
        else:
            messages = await asyncio.to_thread(messages_for, item, self.prompt)
        draft = self.drafts.get(item.key)
        if draft is None:
            reply = await self._call(client, item, messages)
            answer, reasons = judge(self.task, item, reply)
            if reply.state != "answered" or not reasons:
                return finished(self.prompt, item, reply, answer, reasons, None)
            draft = Draft(reply.content, tuple(reasons), reply.tokens_in, reply.tokens_out)
            self.ledger.keep_draft(item.key, draft)
        again = repaired(messages, self.prompt, draft)
        reply = await self._call(client, item, again)
        answer, reasons = judge(self.task, item, reply)
        return finished(self.prompt, item, reply, answer, reasons, draft)

    async def _call(self, client: Client, item: Item, messages: list[dict[str, Any]]) -> Reply:
        guess = guessed_tokens(self.task, messages)
        most = await self.budget.take(client, guess, self.task.output_tokens)
        self.ledger.hold(item.key, *most, self.budget.cost(*most))
        reply = None
        try:
            reply = await client.ask(messages, guess, self.budget.lose)
        except asyncio.CancelledError:
            raise  # dropped under way: what is held counts when the ledger is opened again
        except BaseException:
            self.ledger.unhold(item.key)
            raise
        finally:
            self.budget.learn(client.ratio)
            self.budget.hold(*most, -1)
        with self.ledger.transaction():
            self.ledger.unhold(item.key)
            self.budget.charge(reply.tokens_in, reply.tokens_out)
        return reply


def guessed_tokens(task: Task, messages: list[dict[str, Any]]) -> int:
    """Tokens a request is guessed to have."""
    return estimate(messages, PICTURE_TOKENS, len(json.dumps(task.schema())))


def finished(
    prompt: Prompt,
    item: Item,
    reply: Reply,
    answer: Any,
    reasons: Sequence[str],
    draft: Draft | None,
) -> Row:
    """What became of an item after its last call."""
    state, reason, text = FAILED, reply.reason, None
    if reply.state == "refused":
        state = REFUSED
    elif reply.state == "answered" and reasons:
        state, reason = INVALID, "; ".join(reasons)
    elif reply.state == "answered":
        state, reason, text = DONE, "", answer.model_dump_json()
    before = (draft.tokens_in, draft.tokens_out) if draft else (0, 0)
    return Row(
        item.key,
        item.source_id,
        state,
        reason,
        text,
        prompt.repair_sha256 if draft else "",
        draft.dump() if draft else None,
        before[0] + reply.tokens_in,
        before[1] + reply.tokens_out,
    )


def on_signals(act: Any) -> None:
    """Call `act(Ended)` on SIGINT and SIGTERM; None puts the defaults back."""
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":
        return  # loops there know no signal handlers; Ctrl-C ends the run, what was answered stays
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        try:
            if act is None:
                loop.remove_signal_handler(number)
            else:
                loop.add_signal_handler(number, act, Ended("interrupted", code))
        except (ValueError, RuntimeError):
            return  # not the main thread: nobody sends it signals
