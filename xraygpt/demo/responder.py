"""Drafting of reports and answering of questions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from xraygpt.common.errors import InputError
from xraygpt.conversation import Answer, Busy
from xraygpt.demo.decoding import DecodingSettings
from xraygpt.demo.images import ImageManager
from xraygpt.demo.report import split_report
from xraygpt.demo.sessions import Draft, Session
from xraygpt.experiment import ChatParts
from xraygpt.models.base import Generation

MAX_QUESTION = 2000
"""Maximum number of characters in a question."""
PROGRESS_SECONDS = 0.5
"""Longest time between two updates of the status line."""
_FINISHED = {"length": "Cut off at the token limit. ", "cancelled": "Stopped. "}


@dataclass
class AnswerUpdate:
    """The state of an answer, for the page.

    Attributes:
        text: Text generated so far.
        is_report: Whether it is the draft of a report.
        done: Whether the answer is complete.
        status: Text for the status line.
        started: False if the answer was stopped before it started.
    """

    text: str = ""
    is_report: bool = False
    done: bool = False
    status: str = ""
    started: bool = True


class Responder:
    """Drafts reports and answers questions in sessions.

    Args:
        parts: The chat model and its settings.
        images: Manager that passes the sessions' images to the model.
    """

    def __init__(self, parts: ChatParts, images: ImageManager) -> None:
        self.parts, self.images = parts, images
        answerer = parts.engine.answerer
        prompt = "" if answerer is None else answerer.report_prompt
        what = "Describe the images" if parts.clips.as_clips else "Describe this chest X-ray"
        self.report_prompt = prompt or f"{what} as a radiologist would."

    @property
    def writes_impression(self) -> bool:
        """Whether the model's reports have an impression under its own heading."""
        return "impression" in self.parts.engine.model.abilities.sections

    def draft(
        self, session: Session, settings: DecodingSettings, ticket: int | None = None
    ) -> Iterator[AnswerUpdate]:
        """Draft a report on all images, in a new conversation.

        The draft therefore depends only on the images, prompt and decoding settings in its export.
        """
        session.require_image()
        yield from self._stream(session, self.report_prompt, settings, ticket, is_report=True)

    def ask(
        self,
        session: Session,
        question: str,
        settings: DecodingSettings,
        ticket: int | None = None,
    ) -> Iterator[AnswerUpdate]:
        """Answer a question."""
        text = question.strip()
        if not text:
            raise InputError("the question is empty; write a question or choose an example")
        if len(text) > MAX_QUESTION:
            raise InputError(
                f"the question has {len(text):,} characters; at most {MAX_QUESTION:,} are allowed"
            )
        yield from self._stream(session, text, settings, ticket, is_report=False)

    def regenerate(
        self, session: Session, settings: DecodingSettings, ticket: int | None = None
    ) -> Iterator[AnswerUpdate]:
        """Answer the last question again; sampling uses the seed in `settings`."""
        last = len(session.conversation.history) - 1
        if last < 0:
            raise InputError("no question has been asked yet")
        is_report = session.draft is not None and session.draft.index == last
        yield from self._stream(session, None, settings, ticket, is_report=is_report)

    def _stream(
        self,
        session: Session,
        question: str | None,
        settings: DecodingSettings,
        ticket: int | None,
        *,
        is_report: bool,
    ) -> Iterator[AnswerUpdate]:
        """Yield an answer during generation; the session is unlocked even if the reader leaves.

        Args:
            session: The session.
            question: Question to ask; None answers the last question again.
            settings: Decoding settings.
            ticket: Ticket of the queued question.
            is_report: Whether the answer is a report; a new one starts a new conversation.
        """
        generation = settings.to_generation(self.parts.generation)
        if not session.lock.acquire(blocking=False):
            raise Busy("the last question is still being answered; Stop cancels it")
        update, answer = AnswerUpdate(is_report=is_report), None
        try:
            if session.is_stopped(ticket):
                update.status, update.done, update.started = (
                    "Stopped before it started.",
                    True,
                    False,
                )
                yield update
                return
            answer = self._start(session, question, generation, is_report=is_report)
            if session.is_stopped(ticket):
                session.conversation.cancel()
            for piece in answer.pieces(PROGRESS_SECONDS):
                update.text += piece
                update.status = f"Writing: {answer.progress:.0%} of the maximum length."
                yield update
            self._finish(session, update, settings, answer)
            yield update
        finally:
            if answer is None or answer.is_done:
                session.lock.release()
            else:  # waiting here would block all pages
                session.conversation.cancel()
                args = (session, update, settings, answer)
                threading.Thread(target=self._release_when_done, args=args, daemon=True).start()

    def _start(
        self, session: Session, question: str | None, generation: Generation, *, is_report: bool
    ) -> Answer:
        conversation = session.conversation
        if is_report and question is not None and conversation.history:
            conversation.clear()
            session.model_images, session.draft = [], None
        self.images.sessions.free_old_caches()
        session.heat = {}
        if question is None:
            return conversation.regenerate(generation)
        self.images.update_model_images(session)
        return conversation.ask(question, generation)

    def _release_when_done(
        self,
        session: Session,
        update: AnswerUpdate,
        settings: DecodingSettings,
        answer: Answer,
    ) -> None:
        try:
            answer.wait()
            if answer.finish_reason is not None:
                self._finish(session, update, settings, answer)
        finally:
            session.lock.release()

    def _finish(
        self,
        session: Session,
        update: AnswerUpdate,
        settings: DecodingSettings,
        answer: Answer,
    ) -> None:
        """Complete the update and store the draft."""
        update.text, update.done = answer.text(), True
        update.status = _FINISHED.get(str(answer.finish_reason), "")
        if update.is_report:
            draft = self._make_draft(session, update.text, settings, answer)
            session.draft = draft
            update.status += draft.payload.get("note", "")
            if self.writes_impression and draft.findings and not draft.impression:
                update.status += " The model wrote no impression."
        update.status += _dropped_message(answer.dropped)

    def _make_draft(
        self, session: Session, text: str, settings: DecodingSettings, answer: Answer
    ) -> Draft:
        history = session.conversation.history
        findings, impression = split_report(text)
        return Draft(
            index=len(history) - 1,
            text=text,
            findings=findings,
            impression=impression,
            prompt=history[-1].question_text,
            payload=answer.payload,
            decoding=settings.describe(self.parts.generation),
            seed=answer.seed,
            ended=str(answer.finish_reason),
            images=[
                f"image {index + 1}: {session.images[index].description(frame)}"
                for index, frame in session.model_images[: history[-1].total_media]
            ],
        )


def question_answers(session: Session) -> list[tuple[str, str]]:
    """Return the questions and answers so far, oldest first."""
    history = list(session.conversation.history)
    return [(pair.shown_question, pair.answer) for pair in history]


def _dropped_message(dropped: int) -> str:
    if not dropped:
        return ""
    if dropped == 1:
        what = "question and its answer no longer fit"
    else:
        what = f"{dropped} questions and their answers no longer fit"
    return f"The oldest {what} in the context and were omitted from the prompt. "
