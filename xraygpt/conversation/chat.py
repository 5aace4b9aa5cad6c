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
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from xraygpt.common.errors import InputError
from xraygpt.conversation.answer import Answer, Cancelled, Ended, Pieces, Replay
from xraygpt.conversation.engine import Cell, Engine, Shown
from xraygpt.media.base import Media, of_tensor
from xraygpt.models.base import Bonus, Generation
from xraygpt.prompting.content import (
    IMAGE,
    VIDEO,
    MediaPart,
    Part,
    Turn,
    plain_text,
    turn_of,
)
from xraygpt.prompting.renderer import Rendered


class Busy(InputError):
    """This conversation is still answering."""


@dataclass
class _Exchange:
    """A question and its answer."""

    question: str  # its words
    media: int = 0  # that came with it
    caption: str = ""  # told beside the last of them
    bonus: Bonus | None = None  # what speaks for one of several candidates
    answer: str = ""
    ids: list[int] = field(default_factory=list)  # of the answer and its end
    first: int = 0  # exchanges before it were dropped when it was answered
    images: int = 0  # shown until then

    def turn(self, missing: int = 0) -> Turn:
        """As the renderer reads it, with so many media of exchanges that were dropped before it."""
        parts: list[Part] = [MediaPart() for _ in range(missing)]
        own: list[Part] = [MediaPart() for _ in range(self.media)]
        if own and self.caption:
            own[-1] = MediaPart(caption=self.caption)
        parts += own
        if self.caption and not own:
            parts.append(f" {self.caption}")
        if parts and self.question:
            parts.append(" ")
        return turn_of("user", [*parts, self.question] if self.question else parts)

    @property
    def plain(self) -> str:
        """The question in words, with what was told beside its images."""
        return plain_text(self.turn())


class Conversation:
    """Images and turns about them; threads may share it.

    Args:
        engine: The model.
        system: Opens the conversation; empty takes the template's own words.

    Attributes:
        exchanges: Questions with their answers so far, oldest first.
    """

    def __init__(self, engine: Engine, system: str = "") -> None:
        self.engine, self.system = engine, system
        self.exchanges: list[_Exchange] = []
        self._images: list[Shown] = []
        self._waiting = 0  # images that come with the next question
        self._first = 0  # exchanges before it are dropped
        self._cache: Any = None
        self._cached: list[Cell] = []  # places whose keys and values the cache holds
        self._busy = threading.Lock()
        self._cancel = threading.Event()

    def add_image(self, image: Media | Tensor) -> None:
        """Show an image, a clip, a volume or embeddings; they come with the next question.

        Args:
            image: As the model's image processor makes it. Of a tensor, (C, H, W) is an image,
                (F, C, H, W) a clip, (L, D) embeddings.

        Raises:
            Busy: An answer is under way.
        """
        with self._alone():
            media = of_tensor(image) if isinstance(image, Tensor) else image
            self._images.append(Shown(media))
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
        draft = _Exchange("", media=self._waiting)
        rendered = self._rendered([*self.exchanges[self._first :], draft], len(self._images))
        if not rendered["runs"]:
            return len(self._cached)
        if self.engine.model.reads_question:
            return 0  # the tokens of an image wait for the question
        last = rendered["runs"][-1]
        end = last.start + last.length
        embeds, positions, _ = self.engine.embed(rendered, self._images, "")
        cells = self.engine.cells(rendered, self._images)[:end]
        self._reuse(cells)
        new = slice(len(self._cached), end)
        if embeds[:, new].shape[1]:
            places = {} if positions is None else {"position_ids": positions[..., new]}
            self.engine.chats.llm(
                inputs_embeds=embeds[:, new], past_key_values=self._cache, use_cache=True,
                logits_to_keep=1, **places,
            )  # fmt: skip
            self._cached = cells
        return len(self._cached)

    def ask(
        self,
        question: str,
        how: Generation | None = None,
        *,
        caption: str = "",
        bonus: Bonus | None = None,
    ) -> Answer:
        """Ask, and answer in the background.

        Args:
            question: Without marks of images; they come by `add_image`.
            how: Greedy by default.
            caption: What to tell beside the last image that comes with the question.
            bonus: What speaks for one of several candidates beside being like the others.

        Raises:
            Busy: An answer is under way.
            InputError: The question is empty, or too long for the context.
        """
        text = _words(question)
        if not text and not self._waiting:
            raise InputError("the question is empty")
        if not self._busy.acquire(blocking=False):
            raise Busy("the last question is still being answered")
        try:
            waiting = self._waiting
            asked = _Exchange(text, waiting, caption, bonus, images=len(self._images))
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
            asked = replace(last, answer="", ids=[])
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

    def recall(self, question: str, answer: str, caption: str = "") -> None:
        """Take up an exchange of another conversation, as if it had been here.

        Args:
            question: Images shown since the last question come with it.
            answer: What was said then.
            caption: What was told beside the last of these images.

        Raises:
            Busy: An answer is under way.
        """
        with self._alone():
            waiting, self._waiting = self._waiting, 0
            self.exchanges.append(
                _Exchange(
                    _words(question), waiting, caption, answer=answer,
                    ids=self.engine.decoder.said(answer), first=self._first,
                    images=len(self._images),
                )
            )  # fmt: skip

    def undo(self) -> None:
        """Take the last question and its answer back; images that came with it come again.

        Raises:
            Busy: An answer is under way.
            InputError: Nothing was asked yet.
        """
        with self._alone():
            if not self.exchanges:
                raise InputError("nothing was asked yet")
            self._waiting += self.exchanges.pop().media
            self._first = min(self._first, len(self.exchanges))

    def forget(self) -> None:
        """Free what was computed; the next answer computes it again. The conversation stays.

        Raises:
            Busy: An answer is under way.
        """
        with self._alone():
            self._drop_cache()
            for image in self._images:
                image.tokens = image.read_as = None

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
        rendered = self._rendered(kept, last.images)
        return Replay(
            rendered,
            len(rendered["input_ids"]) - len(last.ids),
            last.answer,
            list(self._images[: last.images]),
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
        used = len(self._rendered(kept, kept[-1].images)["input_ids"]) if kept else 0
        room = self.engine.model.context_len - (how or Generation()).max_new_tokens
        return max(room - used, 0)

    def _alone(self) -> _Held:
        return _Held(self._busy)

    def _turns(self, exchanges: Sequence[_Exchange], images: int) -> list[Turn]:
        """As the renderer reads them; images of dropped exchanges come with the first kept one."""
        turns = [Turn(role="system", text=self.system)] if self.system else []
        missing = images - sum(e.media for e in exchanges)
        for i, exchange in enumerate(exchanges):
            turns.append(exchange.turn(missing if i == 0 else 0))
            if exchange.ids:
                turns.append(Turn(role="assistant", text=exchange.answer))
        return turns

    def _rendered(self, exchanges: Sequence[_Exchange], images: int) -> Rendered:
        shown = self._images[:images]
        return self.engine.renderer.render(
            self._turns(exchanges, len(shown)),
            self.engine.plan(shown),
            "chat",
            answers=[e.ids for e in exchanges if e.ids],
        )

    def _drop_cache(self) -> None:
        self._cache, self._cached = None, []

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
        while True:
            rendered = self._rendered([*before[first:], exchange], exchange.images)
            ids = rendered["input_ids"]
            if len(ids) <= room:
                break
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
        given = (exchange, rendered, how, answer, before, waiting)
        threading.Thread(target=self._work, args=given, daemon=True).start()
        return answer

    def _work(
        self,
        exchange: _Exchange,
        rendered: Rendered,
        how: Generation,
        answer: Answer,
        before: list[_Exchange],
        waiting: int,
    ) -> None:
        text, ended, error = "", None, None
        try:
            with self.engine.lane, torch.inference_mode():
                kept = [*before[exchange.first :], exchange]
                text, new, ended = self._generate(kept, rendered, how, answer)
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
        self, kept: list[_Exchange], rendered: Rendered, how: Generation, answer: Answer
    ) -> tuple[str, list[int], Ended]:
        """Text, ids with the end, and how it ended."""
        engine, shown = self.engine, self._images[: kept[-1].images]
        embeds, positions, average = engine.embed(rendered, shown, _asked(kept))
        cells = engine.cells(rendered, shown)
        alone = how.num_beams > 1 or how.candidates > 1  # several rows: the cache is left alone
        if not alone:
            self._reuse(cells)
            answer.cached_tokens = len(self._cached)
        said = Pieces(engine.decoder, answer, self._cancel)
        rows = engine.decoder.generate_ids(
            embeds,
            torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            how,
            average() if how.guidance else None,
            positions=positions,
            past_key_values=None if alone else self._cache,
            streamer=None if alone else said,
            stop=Cancelled(self._cancel),
        )
        said_all = [engine.decoder.closed(row, self._cancel.is_set()) for row in rows]
        texts = [s[0] for s in said_all]
        best = engine.decoder.chosen(texts, kept[-1].bonus, references=how.references)
        text, new, ended = said_all[best]
        said.rest(text)
        if not alone:
            self._cached = [*cells, *new][: int(self._cache.get_seq_length())]
            self._crop(len(self._cached))
        return text, new, ended

    def _reuse(self, cells: Sequence[Cell]) -> None:
        """Keep of the cache what a prompt begins with; its last token is always computed."""
        if self._cache is None:
            self._cache = DynamicCache(config=self.engine.chats.llm.config)
            self._cached = []
        pairs = zip(self._cached, cells[:-1], strict=False)
        self._crop(sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    def _crop(self, keep: int) -> None:
        extra = int(self._cache.get_seq_length()) - keep
        if extra > 0:
            self._cache.crop(-extra)
        self._cached = self._cached[:keep]


def _words(question: str) -> str:
    """A question without marks of media."""
    return " ".join(question.replace(IMAGE, " ").replace(VIDEO, " ").split())


def _asked(exchanges: Sequence[_Exchange]) -> str:
    """What a Q-Former that reads the question reads: all that was asked."""
    return " ".join(" ".join(e.plain for e in exchanges).split())


class _Held:
    """Holds a lock, or says at once that it is taken."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise Busy("the last question is still being answered")

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class ChatEngine(Engine):
    """A model, ready to talk."""

    def start(self, system: str = "") -> Conversation:
        """A new conversation.

        Args:
            system: Opens it; empty takes the template's own words.
        """
        return Conversation(self, system)
