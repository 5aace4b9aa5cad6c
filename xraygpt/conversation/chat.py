"""Conversations that share a model and reuse the key-value cache from turn to turn.

A conversation stores the token ids of its answers: decoding and re-encoding may change them,
and a cache is valid only for the ids it was computed from. Before each answer the ids of the full
conversation are rendered and compared with the cache; only the tokens after the common prefix are
computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from xraygpt.answering.routes import Kind
from xraygpt.common.errors import InputError
from xraygpt.conversation.answer import Answer, AnswerContext
from xraygpt.conversation.engine import EncodedMedium, Engine
from xraygpt.conversation.generate import Request, generate_answer, prefill_media
from xraygpt.conversation.history import (
    QuestionAnswer,
    build_turns,
    join_questions,
    remove_marks,
)
from xraygpt.conversation.prefix_cache import PrefixCache
from xraygpt.datasets.collate import shorten_advice
from xraygpt.datasets.input_check import study_warnings
from xraygpt.media.base import Media, media_from_tensor
from xraygpt.models.base import Generation
from xraygpt.prompting.renderer import Rendered
from xraygpt.tasks.payload import Answer as TaskAnswer
from xraygpt.tasks.payload import Payload


class Busy(InputError):
    """The conversation is still generating an answer."""


class Conversation:
    """Images and questions about them; safe to use from several threads.

    Args:
        engine: The chat model.
        system: System prompt; if empty, the template's is used.

    Attributes:
        history: Questions and answers so far, oldest first.
    """

    def __init__(self, engine: Engine, system: str = "") -> None:
        self.engine, self.system = engine, system
        self.history: list[QuestionAnswer] = []
        self._media: list[EncodedMedium] = []
        self._num_pending = 0  # number of media for the next question
        self._first_in_context = 0  # older pairs are omitted from the prompt
        self._cache = PrefixCache(engine.chats.llm)
        self._busy = threading.Lock()
        self._cancel = threading.Event()

    def add_image(self, image: Media | Tensor, name: str = "") -> None:
        """Add an image, a clip, a volume or embeddings to the next question.

        Args:
            image: Output of the model's image processor. A tensor is an image (C, H, W), a clip
                (F, C, H, W) or embeddings (L, D).
            name: Its name in messages; by default, media are numbered.

        Raises:
            Busy: An answer is being generated.
        """
        with self._exclusive():
            media = media_from_tensor(image) if isinstance(image, Tensor) else image
            self._media.append(EncodedMedium(media, name))
            self._num_pending += 1

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt that the model can read the images, one sentence each."""
        return study_warnings([medium.media.warnings for medium in self._media])

    def remove_pending_images(self) -> None:
        """Remove the images about which no question has been asked yet.

        Raises:
            Busy: An answer is being generated.
        """
        with self._exclusive():
            self._media = self._media[: len(self._media) - self._num_pending]
            self._num_pending = 0

    def prefill(self) -> int:
        """Run the prompt up to the last image through the model, so that the answer starts sooner.

        Returns:
            Number of cached tokens.

        Raises:
            Busy: An answer is being generated.
        """
        with self._exclusive(), self.engine.lock, torch.inference_mode():
            try:
                return self._prefill()
            except BaseException:  # the cache may be incomplete
                self._cache.clear()
                raise

    def _prefill(self) -> int:
        pending = QuestionAnswer("", num_media=self._num_pending)
        pairs = [*self.history[self._first_in_context :], pending]
        rendered = self._render(pairs, len(self._media))
        if not rendered["runs"]:
            return len(self._cache)
        if self.engine.model.reads_question:
            return 0  # the image tokens depend on the question
        prefill_media(self.engine, rendered, self._media, self._cache)
        return len(self._cache)

    def ask(self, question: str, generation: Generation | None = None) -> Answer:
        """Ask a question; text of the language model is generated in the background.

        Args:
            question: Text of the question; media marks are removed, as `add_image` adds the images.
            generation: Decoding settings; greedy by default.

        Raises:
            Busy: An answer is being generated.
            InputError: The question is empty or too long for the context.
        """
        text = remove_marks(question)
        if not text and not self._num_pending:
            raise InputError("the question is empty")
        self._acquire()
        try:
            prepared = self.engine.prepare(text, self._media, self._current_report())
            pair = QuestionAnswer(
                prepared.question,
                self._num_pending,
                prepared.caption,
                prepared.bonus,
                kind=prepared.kind,
                text_asked=text,
                findings=prepared.findings,
                total_media=len(self._media),
            )
            if prepared.answer is not None:
                return self._reply(pair, prepared.answer)
            previous, pending = list(self.history), self._num_pending
            return self._start(pair, generation or Generation(), previous, pending)
        except BaseException:
            self._busy.release()
            raise

    def _current_report(self) -> str:
        """Return the latest report about all images of the conversation, or ""."""
        reports = [
            pair.answer
            for pair in self.history
            if pair.kind is Kind.REPORT and pair.total_media == len(self._media)
        ]
        return reports[-1] if reports else ""

    def _reply(self, pair: QuestionAnswer, answer: TaskAnswer) -> Answer:
        """Record an answer that needs no language model; the conversation becomes free again."""
        pair.answer, pair.payload = answer.text, answer.payload
        pair.answer_ids = self.engine.decoder.answer_ids(answer.text)
        pair.first_in_context = min(self._first_in_context, len(self.history))
        self.history = [*self.history, pair]
        self._num_pending -= pair.num_media
        return self._finished(pair)

    def _finished(self, pair: QuestionAnswer) -> Answer:
        answer = Answer(0, 0, None)
        answer.add_piece(pair.answer)
        self._busy.release()
        answer.finish(pair.answer, "end", payload=pair.payload)
        return answer

    def regenerate(self, generation: Generation | None = None) -> Answer:
        """Answer the last question again, about the same images.

        If generation fails, the previous answer is kept.

        Raises:
            Busy: An answer is being generated.
            InputError: No question has been asked yet, or the question does not fit in the context.
        """
        self._acquire()
        try:
            if not self.history:
                raise InputError("no question has been asked yet")
            *previous, last = self.history
            if not last.kind.is_generated:
                return self._finished(last)
            pair = replace(last, answer="", answer_ids=[])
            return self._start(pair, generation or Generation(), previous, 0)
        except BaseException:
            self._busy.release()
            raise

    def cancel(self) -> None:
        """Stop the current answer; the text generated so far is kept."""
        self._cancel.set()

    def clear(self) -> None:
        """Remove all images, questions and answers.

        Raises:
            Busy: An answer is being generated.
        """
        with self._exclusive():
            self.history, self._media = [], []
            self._num_pending = self._first_in_context = 0
            self._cache.clear()

    def restore(self, question: str, answer: str) -> None:
        """Append a question and answer of an earlier conversation.

        Args:
            question: The question, to which the pending images are attached.
            answer: The answer that was given.

        Raises:
            Busy: An answer is being generated.
        """
        with self._exclusive():
            text = remove_marks(question)
            prepared = self.engine.prepare(text, self._media, answer)
            pending, self._num_pending = self._num_pending, 0
            first = len(self.history) if prepared.kind is Kind.REPORT else self._first_in_context
            self._first_in_context = first
            self.history.append(
                QuestionAnswer(
                    prepared.question, pending, prepared.caption, kind=prepared.kind,
                    text_asked=text, findings=prepared.findings, answer=answer,
                    answer_ids=self.engine.decoder.answer_ids(answer),
                    first_in_context=first, total_media=len(self._media),
                )
            )  # fmt: skip

    def undo(self) -> None:
        """Remove the last question and its answer; the question's images become pending again.

        Raises:
            Busy: An answer is being generated.
            InputError: No question has been asked yet.
        """
        with self._exclusive():
            if not self.history:
                raise InputError("no question has been asked yet")
            self._num_pending += self.history.pop().num_media
            self._first_in_context = min(self._first_in_context, len(self.history))

    def free_cache(self) -> None:
        """Free all caches; the next answer recomputes their content.

        Raises:
            Busy: An answer is being generated.
        """
        with self._exclusive():
            self._cache.clear()
            for medium in self._media:
                medium.forget_tokens()

    def answer_context(self, index: int = -1) -> AnswerContext:
        """Return an answer and the prompt it was generated from.

        Args:
            index: Index in `history`; -1 is the last.

        Raises:
            InputError: No question has been answered yet.
        """
        history = list(self.history)
        if not history:
            raise InputError("no question has been asked yet")
        index = range(len(history))[index]
        pair = history[index]
        pairs = history[pair.first_in_context : index + 1]
        rendered = self._render(pairs, pair.total_media)
        return AnswerContext(
            rendered,
            len(rendered["input_ids"]) - len(pair.answer_ids),
            pair.answer,
            list(self._media[: pair.total_media]),
            join_questions(pairs),
        )

    def tokens_left(self, generation: Generation | None = None) -> int:
        """Return how many tokens the next question may have before an old one must be dropped."""
        pairs = self.history[self._first_in_context :]
        used = len(self._render(pairs, pairs[-1].total_media)["input_ids"]) if pairs else 0
        room = self.engine.model.context_len - (generation or Generation()).max_new_tokens
        return max(room - used, 0)

    def _acquire(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise Busy("the last question is still being answered")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._acquire()
        try:
            yield
        finally:
            self._busy.release()

    def _render(self, pairs: Sequence[QuestionAnswer], total_media: int) -> Rendered:
        media = self._media[:total_media]
        return self.engine.renderer.render(
            build_turns(self.system, pairs, len(media)),
            self.engine.token_runs(media),
            "chat",
            answers=[pair.answer_ids for pair in pairs if pair.answer_ids],
        )

    def _start(
        self,
        pair: QuestionAnswer,
        generation: Generation,
        previous: list[QuestionAnswer],
        num_new_media: int,
    ) -> Answer:
        """Drop old pairs until the prompt fits, and start the generating thread."""
        room = self.engine.model.context_len - generation.max_new_tokens
        first = min(self._first_in_context, len(previous))
        if pair.kind is Kind.REPORT:  # a report depends only on the images
            first = len(previous)
        while True:
            rendered = self._render([*previous[first:], pair], pair.total_media)
            length = len(rendered["input_ids"])
            if length <= room:
                break
            if first >= len(previous):
                raise InputError(
                    f"the question and its images have {length} tokens, but the context of "
                    f"{self.engine.model.context_len} has room for only {max(room, 0)}, because "
                    f"{generation.max_new_tokens} are reserved for the answer"
                    f"{self._advice(rendered, pair.total_media)}"
                )
            first += 1
        pair.first_in_context = first
        seed = generation.seed if generation.do_sample else None
        answer = Answer(0 if pair.kind is Kind.REPORT else first, length, seed)
        self._cancel.clear()
        self._num_pending -= num_new_media
        media = self._media[: pair.total_media]
        request = Request(pair, rendered, media, generation, answer, previous, num_new_media)
        threading.Thread(target=self._run, args=(request,), daemon=True).start()
        return answer

    def _advice(self, rendered: Rendered, total_media: int) -> str:
        """Return how to shorten the longest clip; empty without clips."""
        media = self._media[:total_media]
        if all(medium.media.kind != "clip" for medium in media):
            return ""
        names = [medium.name or f"at position {i}" for i, medium in enumerate(media, start=1)]
        return f"; {shorten_advice([m.media for m in media], rendered['runs'], names)}"

    def _run(self, request: Request) -> None:
        """Generate an answer; a failure leaves the history and the pending images unchanged."""
        text, reason, error, payload = "", None, None, Payload()
        pair, answerer = request.pair, self.engine.answerer
        try:
            with self.engine.lock, torch.inference_mode():
                text, ids, reason = generate_answer(self.engine, request, self._cache, self._cancel)
            if pair.kind is Kind.REPORT and answerer is not None:
                payload = answerer.complete(text, pair.findings)
            pair.answer, pair.answer_ids, pair.payload = text, ids, payload
            self.history = [*request.previous, pair]
            self._first_in_context = pair.first_in_context
        except BaseException as raised:
            error = raised
            self._cache.clear()
            self._num_pending += request.num_new_media
        finally:
            self._busy.release()
            request.answer.finish(text, reason, error, payload)


class ChatEngine(Engine):
    """An `Engine` that starts conversations."""

    def start(self, system: str = "") -> Conversation:
        """Start a conversation.

        Args:
            system: System prompt; if empty, the template's is used.
        """
        return Conversation(self, system)
