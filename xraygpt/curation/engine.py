"""Asks a language model about every item: many at once, each answer checked and written down."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
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
from xraygpt.curation.ledger import DONE, FAILED, INVALID, REFUSED, Ledger, Row, row_key
from xraygpt.curation.limits import Breaker, Pace, Patience
from xraygpt.curation.prompts import Prompt
from xraygpt.curation.tasks import Task
from xraygpt.processors.pixels import read_image

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


@dataclass
class Budget:
    """Stops before a call that could overstep; counts what is under way at its most."""

    ledger: Ledger
    limits: Limits
    price: Price | None
    batch: bool = False
    held_tokens: int = 0
    held_money: float = 0.0

    def __post_init__(self) -> None:
        spent = self.ledger.spent()
        self.tokens, self.money = spent.tokens, spent.money

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Money; 0 without a price."""
        return self.price.of(tokens_in, tokens_out, self.batch) if self.price else 0.0

    def reserve(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether a call of at most so many tokens fits; if so it is counted as under way."""
        tokens = self.tokens + self.held_tokens + tokens_in + tokens_out
        money = self.money + self.held_money + self.cost(tokens_in, tokens_out)
        limits = self.limits
        if limits.max_tokens is not None and tokens > limits.max_tokens:
            return False
        if limits.max_money is not None and money > limits.max_money:
            return False
        self.hold(tokens_in, tokens_out)
        return True

    def settle(self, reserved: tuple[int, int], reply: Reply | None) -> None:
        """The call is over; what it took is written down."""
        self.hold(*reserved, -1)
        if reply is None or not (reply.tokens_in or reply.tokens_out):
            return
        money = self.cost(reply.tokens_in, reply.tokens_out)
        self.tokens += reply.tokens_in + reply.tokens_out
        self.money += money
        self.ledger.spend(reply.tokens_in, reply.tokens_out, money)

    def hold(self, tokens_in: int, tokens_out: int, sign: int = 1) -> None:
        """Count a call as under way, or with -1 as over."""
        self.held_tokens += sign * (tokens_in + tokens_out)
        self.held_money += sign * self.cost(tokens_in, tokens_out)


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
    if reply.reason:
        return None, [reply.reason]
    if not reply.content.strip():
        return None, ["the answer is empty"]
    answer, reasons = task.read(reply.content)
    return answer, reasons or task.problems(item.source, answer)


def repaired(
    messages: list[dict[str, Any]], prompt: Prompt, reply: Reply, reasons: Sequence[str]
) -> list[dict[str, Any]]:
    """The messages of the one repair call."""
    return [
        *messages,
        {"role": "assistant", "content": reply.content or "(empty)"},
        {"role": "user", "content": prompt.ask_again(reasons)},
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
        self.budget = Budget(ledger, limits, price)
        self.states: Counter[str] = Counter()
        self._why: list[Ended] = []

    def run(self, items: Sequence[Item]) -> Ended:
        """Ask about items that have no final state yet."""
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
            self.ledger.start([item.key])
            try:
                row = await self._row(client, item)
            except Released:
                self.ledger.release([item.key])
                return
            except OverBudget:
                self.ledger.release([item.key])
                self._stop(stopping, Ended("the next call could overstep the budget", 1))
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
        reply = await self._call(client, messages)
        tokens = [reply.tokens_in, reply.tokens_out]
        first: list[str] = []
        if reply.state == "answered":
            answer, reasons = judge(self.task, item, reply)
            if reasons:
                first = reasons
                again = repaired(messages, self.prompt, reply, reasons)
                reply = await self._call(client, again)
                tokens = [tokens[0] + reply.tokens_in, tokens[1] + reply.tokens_out]
                if reply.state == "answered":
                    answer, reasons = judge(self.task, item, reply)
        state, reason, text = FAILED, reply.reason, None
        if reply.state == "refused":
            state = REFUSED
        elif reply.state == "answered":
            state, reason = (INVALID, "; ".join(reasons)) if reasons else (DONE, "")
            text = None if reasons else answer.model_dump_json()
        repair = self.prompt.repair_sha256 if first else ""
        return Row(item.key, item.source_id, state, reason, text, "; ".join(first), repair, *tokens)

    async def _call(self, client: Client, messages: list[dict[str, Any]]) -> Reply:
        guess = estimate(messages, PICTURE_TOKENS)
        most = (guess, self.task.output_tokens)
        if not self.budget.reserve(*most):
            raise OverBudget
        reply = None
        try:
            reply = await client.ask(messages, guess)
        finally:
            self.budget.settle(most, reply)
        return reply


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
