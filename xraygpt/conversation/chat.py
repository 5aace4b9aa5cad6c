"""Conversations that share a model. What a turn has computed stays for the next one.

A conversation keeps the ids of all it has said and heard, never text that would be tokenised anew:
decoding and encoding again is not the identity, and a cache is good only for the ids that made it.
Before each answer the ids of the whole conversation are written out, the part that the cache holds
already is found by comparison, and the rest is computed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from xraygpt.common.errors import InputError
from xraygpt.conversation.answer import Answer, Cancelled, Ended, Pieces, Replay
from xraygpt.models.base import Generation
from xraygpt.models.decoding import Decoder
from xraygpt.models.finding_head import agreement_with
from xraygpt.models.xraygpt import XrayGPT
from xraygpt.processors.prompts import IMAGE, IMAGE_TOKEN_ID, Turn, told_in, without_marks


class Busy(InputError):
    """This conversation is still answering."""


@dataclass
class _Image:
    """An image of a conversation and what the model made of it."""

    tensor: Tensor
    key: int = field(default_factory=itertools.count().__next__)  # no other image has it
    read_with: str | None = None  # what the Q-Former read beside it, if it reads anything
    tokens: Tensor | None = None  # (Q, H)


@dataclass
class _Exchange:
    """A question and its answer."""

    question: str  # with one `<image>` for each image that came with it
    answer: str = ""
    ids: list[int] = field(default_factory=list)  # of the answer and its end
    first: int = 0  # exchanges before it were dropped when it was answered
    images: int = 0  # shown until then


class ChatEngine:
    """A model that many conversations share, one answer at a time.

    Args:
        model: On its device; is put into evaluation mode.
    """

    def __init__(self, model: XrayGPT) -> None:
        self.model = model.eval()
        self.packer: Any = model.packer
        self.renderer = model.renderer
        self.decoder = Decoder(model.llm, model.renderer)
        self.lane = threading.Lock()
        self.device = model.proj.weight.device

    def start(self, system: str = "") -> Conversation:
        """A new conversation.

        Args:
            system: Opens it; empty takes the template's own words.
        """
        return Conversation(self, system)

    @torch.no_grad()
    def encode(self, image: Tensor, asked: str) -> Tensor:
        """(Q, H) tokens of an image; a Q-Former that reads the question reads `asked`."""
        packed = self.packer.pack([image]).items()
        inputs = {name: value.to(self.device) for name, value in packed}
        return self.model.image_tokens(**inputs, **self._reading(image, asked)).flatten(0, 1)

    def read(self, image: _Image, asked: str) -> Tensor:
        """As `encode`, unless that was done before."""
        read_with = asked if self._reading(image.tensor, asked) else None
        if image.tokens is None or image.read_with != read_with:
            image.tokens, image.read_with = self.encode(image.tensor, asked), read_with
        return image.tokens

    def _reading(self, image: Tensor, asked: str) -> dict[str, Tensor]:
        count = self.packer.tokens(image)
        ids = torch.full((1, count), IMAGE_TOKEN_ID, device=self.device)
        return self.model.reading({"input_ids": ids, "question": [asked]})  # type: ignore[typeddict-item]

    @torch.no_grad()
    def embed(self, ids: Sequence[int], images: Sequence[Tensor]) -> Tensor:
        """Ids with placeholders -> (1, T, H), the images' tokens in their places."""
        row = torch.tensor([list(ids)], device=self.device)
        at = row == IMAGE_TOKEN_ID
        embeds: Tensor = self.model.llm.get_input_embeddings()(row.masked_fill(at, 0))
        if not images:
            return embeds
        tokens = torch.cat(list(images)).to(embeds)
        return embeds.masked_scatter(at.unsqueeze(-1).to(embeds.device), tokens)


class Conversation:
    """Images and turns about them. Made by `ChatEngine.start`; threads may share it.

    Attributes:
        exchanges: Questions with their answers so far, oldest first.
    """

    def __init__(self, engine: ChatEngine, system: str) -> None:
        self.engine, self.system = engine, system
        self.exchanges: list[_Exchange] = []
        self._images: list[_Image] = []
        self._waiting = 0  # images that come with the next question
        self._first = 0  # exchanges before it are dropped
        self._cache: Any = None
        self._cached: list[int] = []  # ids whose keys and values the cache holds
        self._cached_images: list[tuple[int, str | None]] = []
        self._busy = threading.Lock()
        self._cancel = threading.Event()

    def add_image(self, image: Tensor) -> None:
        """Show an image; it comes with the next question.

        Args:
            image: As the model's image processor makes it: (C, H, W), a clip (F, C, H, W), or
                pre-computed features (L, D).

        Raises:
            Busy: An answer is under way.
        """
        with self._alone():
            self._images.append(_Image(image))
            self._waiting += 1

    def prefill(self) -> int:
        """Compute all up to the last image now, so that the first answer starts sooner.

        Returns:
            Tokens that are computed.

        Raises:
            Busy: An answer is under way.
        """
        with self._alone(), self.engine.lane, torch.inference_mode():
            try:
                return self._prefill()
            except BaseException:  # half computed is not computed
                self._drop_cache()
                raise

    def _prefill(self) -> int:
        draft = _Exchange(IMAGE * self._waiting)
        ids = self._ids([*self.exchanges[self._first :], draft], len(self._images))
        if IMAGE_TOKEN_ID not in ids:
            return len(self._cached)
        last = len(ids) - ids[::-1].index(IMAGE_TOKEN_ID)
        images = [self.engine.read(image, "") for image in self._images]
        if any(image.read_with is not None for image in self._images):
            return 0  # the Q-Former waits for the question
        self._reuse(ids[:last], self._images)
        embeds = self.engine.embed(ids[:last], images)[:, len(self._cached) :]
        if embeds.shape[1]:
            self.engine.model.llm(
                inputs_embeds=embeds, past_key_values=self._cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            self._cached = ids[:last]
        self._cached_images = _keys(self._images)
        return len(self._cached)

    def ask(self, question: str, how: Generation | None = None) -> Answer:
        """Ask, and answer in the background.

        Args:
            question: Without marks of images; they come by `add_image`.
            how: Greedy by default.

        Raises:
            Busy: An answer is under way.
            InputError: The question is empty, or too long for the context.
        """
        text = " ".join(question.replace(IMAGE, " ").split())
        if not text and not self._waiting:
            raise InputError("the question is empty")
        if not self._busy.acquire(blocking=False):
            raise Busy("the last question is still being answered")
        try:
            waiting, marks = self._waiting, IMAGE * self._waiting
            asked = _Exchange(f"{marks} {text}".strip(), images=len(self._images))
            return self._begin(asked, how or Generation(), list(self.exchanges), waiting)
        except BaseException:
            self._busy.release()
            raise

    def regenerate(self, how: Generation | None = None) -> Answer:
        """Answer the last question anew, about the images it was asked about.

        If it fails, the answer that was there stays.

        Raises:
            Busy: An answer is under way.
            InputError: Nothing was asked yet, or it does not fit into the context.
        """
        if not self._busy.acquire(blocking=False):
            raise Busy("the last question is still being answered")
        try:
            if not self.exchanges:
                raise InputError("nothing was asked yet")
            *before, last = self.exchanges
            asked = _Exchange(last.question, images=last.images)
            return self._begin(asked, how or Generation(), before, 0)
        except BaseException:
            self._busy.release()
            raise

    def cancel(self) -> None:
        """Stop the answer under way; what it has said stays."""
        self._cancel.set()

    def clear(self) -> None:
        """Forget everything.

        Raises:
            Busy: An answer is under way.
        """
        with self._alone():
            self.exchanges, self._images, self._waiting, self._first = [], [], 0, 0
            self._drop_cache()

    def recall(self, question: str, answer: str) -> None:
        """Take up an exchange of another conversation, as if it had been here.

        Args:
            question: Images shown since the last question come with it.
            answer: What was said then.

        Raises:
            Busy: An answer is under way.
        """
        with self._alone():
            text = " ".join(question.replace(IMAGE, " ").split())
            marks, self._waiting = IMAGE * self._waiting, 0
            ids = self.engine.decoder.said(answer)
            said = _Exchange(f"{marks} {text}".strip(), answer, ids, self._first, len(self._images))
            self.exchanges.append(said)

    def undo(self) -> None:
        """Take the last question and its answer back; images that came with it come again.

        Raises:
            Busy: An answer is under way.
            InputError: Nothing was asked yet.
        """
        with self._alone():
            if not self.exchanges:
                raise InputError("nothing was asked yet")
            self._waiting += self.exchanges.pop().question.count(IMAGE)
            self._first = min(self._first, len(self.exchanges))

    def forget(self) -> None:
        """Free what was computed; the next answer computes it again. The conversation stays.

        Raises:
            Busy: An answer is under way.
        """
        with self._alone():
            self._drop_cache()
            for image in self._images:
                image.tokens = None

    def replay(self, turn: int = -1) -> Replay:
        """The prompt of an answer, and the answer.

        Args:
            turn: Which exchange; -1 is the last.

        Raises:
            InputError: Nothing was answered yet.
        """
        exchanges = list(self.exchanges)
        if not exchanges:
            raise InputError("nothing was asked yet")
        turn = range(len(exchanges))[turn]
        last = exchanges[turn]
        kept = exchanges[last.first : turn + 1]
        ids = self._ids(kept, last.images)
        return Replay(
            ids,
            len(ids) - len(last.ids),
            last.answer,
            [image.tensor for image in self._images[: last.images]],
            _asked(kept),
        )

    def withdraw(self) -> None:
        """Take back the images that no question came with yet.

        Raises:
            Busy: An answer is under way.
        """
        with self._alone():
            self._images = self._images[: len(self._images) - self._waiting]
            self._waiting = 0

    def tokens_left(self, how: Generation | None = None) -> int:
        """Tokens a question may still take before an old exchange is dropped."""
        kept = self.exchanges[self._first :]
        used = len(self._ids(kept, kept[-1].images)) if kept else 0
        room = self.engine.model.context_len - (how or Generation()).max_new_tokens
        return max(room - used, 0)

    def _alone(self) -> _Held:
        return _Held(self._busy)

    def _turns(self, exchanges: Sequence[_Exchange], images: int) -> list[Turn]:
        """As the renderer reads them; images of dropped exchanges come with the first kept one."""
        turns = [Turn(role="system", text=self.system)] if self.system else []
        missing = images - sum(e.question.count(IMAGE) for e in exchanges)
        for i, exchange in enumerate(exchanges):
            text = exchange.question
            if i == 0 and missing > 0:
                text = f"{IMAGE * missing} {text}" if IMAGE not in text else IMAGE * missing + text
            turns.append(Turn(role="user", text=text))
            if exchange.ids:
                turns.append(Turn(role="assistant", text=exchange.answer))
        return turns

    def _ids(self, exchanges: Sequence[_Exchange], images: int) -> list[int]:
        shown = self._images[:images]
        counts = [self.engine.packer.tokens(image.tensor) for image in shown]
        rendered = self.engine.renderer.render(
            self._turns(exchanges, len(shown)),
            counts,
            "chat",
            answers=[e.ids for e in exchanges if e.ids],
        )
        return rendered["input_ids"]

    def _drop_cache(self) -> None:
        self._cache, self._cached, self._cached_images = None, [], []

    def _begin(
        self, exchange: _Exchange, how: Generation, before: list[_Exchange], waiting: int
    ) -> Answer:
        """Find what fits, and start answering.

        Args:
            exchange: What is asked.
            how: Decoding.
            before: Exchanges that stand before it.
            waiting: Images that come with it; they wait again if it fails.
        """
        room = self.engine.model.context_len - how.max_new_tokens
        first = min(self._first, len(before))
        while len(ids := self._ids([*before[first:], exchange], exchange.images)) > room:
            if first >= len(before):
                raise InputError(
                    f"the question and its images take {len(ids)} tokens; with "
                    f"{how.max_new_tokens} for the answer the context of "
                    f"{self.engine.model.context_len} holds {max(room, 0)}"
                )
            first += 1
        exchange.first = first
        answer = Answer(first, len(ids), how.seed if how.do_sample else None)
        self._cancel.clear()
        self._waiting -= waiting
        given = (exchange, ids, how, answer, before, waiting)
        threading.Thread(target=self._work, args=given, daemon=True).start()
        return answer

    def _work(
        self,
        exchange: _Exchange,
        ids: list[int],
        how: Generation,
        answer: Answer,
        before: list[_Exchange],
        waiting: int,
    ) -> None:
        text, ended, error = "", None, None
        try:
            with self.engine.lane, torch.inference_mode():
                kept = [*before[exchange.first :], exchange]
                text, new, ended = self._generate(kept, ids, how, answer)
            exchange.answer, exchange.ids = text, new
            self.exchanges, self._first = [*before, exchange], exchange.first
        except BaseException as raised:
            error = raised
            self._drop_cache()
            self._waiting += waiting
        finally:
            self._busy.release()
            answer.finish(text, ended, error)

    def _generate(
        self, kept: list[_Exchange], ids: list[int], how: Generation, answer: Answer
    ) -> tuple[str, list[int], Ended]:
        """Text, ids with the end, and how it ended."""
        engine = self.engine
        asked, shown = _asked(kept), self._images[: kept[-1].images]
        images = [engine.read(image, asked) for image in shown]
        alone = how.num_beams > 1 or how.candidates > 1  # several rows: the cache is left alone
        if not alone:
            self._reuse(ids, shown)
            answer.cached_tokens = len(self._cached)
        embeds = engine.embed(ids, images)
        plain = None
        if how.guidance and engine.model.average_count:
            average = engine.model.average_tokens
            plain = engine.embed(ids, [average[: len(image)] for image in images])
        said = Pieces(engine.decoder, answer, self._cancel)
        rows = engine.decoder.generate_ids(
            embeds,
            torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            how,
            plain,
            past_key_values=None if alone else self._cache,
            streamer=None if alone else said,
            stop=Cancelled(self._cancel),
        )
        said_all = [engine.decoder.closed(row, self._cancel.is_set()) for row in rows]
        bonus = agreement_with([told_in(kept[-1].question)], how.agreement)
        best = engine.decoder.chosen([s[0] for s in said_all], bonus, references=how.references)
        text, new, ended = said_all[best]
        said.rest(text)
        if not alone:
            self._cached = [*ids, *new][: int(self._cache.get_seq_length())]
            self._crop(len(self._cached))
            self._cached_images = _keys(shown)
        return text, new, ended

    def _reuse(self, ids: Sequence[int], images: Sequence[_Image]) -> None:
        """Keep of the cache what a prompt begins with; its last token is always computed."""
        if self._cache is None:
            self._cache = DynamicCache(config=self.engine.model.llm.config)
            self._cached = []
        keys = _keys(images)
        same = 0
        seen = 0
        runs = [self.engine.packer.tokens(image.tensor) for image in images]
        for ours, theirs in zip(self._cached, ids[:-1], strict=False):
            if ours != theirs:
                break
            if ours == IMAGE_TOKEN_ID:
                image = next(i for i in range(len(runs)) if seen < sum(runs[: i + 1]))
                if image >= len(self._cached_images) or self._cached_images[image] != keys[image]:
                    break
                seen += 1
            same += 1
        self._crop(same)

    def _crop(self, keep: int) -> None:
        extra = int(self._cache.get_seq_length()) - keep
        if extra > 0:
            self._cache.crop(-extra)
        self._cached = self._cached[:keep]


def _keys(images: Sequence[_Image]) -> list[tuple[int, str | None]]:
    """What tells images, as they were read, apart."""
    return [(image.key, image.read_with) for image in images]


def _asked(exchanges: Sequence[_Exchange]) -> str:
    """What a Q-Former that reads the question reads: all that was asked."""
    return " ".join(" ".join(without_marks(e.question) for e in exchanges).split())


class _Held:
    """Holds a lock, or says at once that it is taken."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise Busy("the last question is still being answered")

    def __exit__(self, *_: object) -> None:
        self.lock.release()
