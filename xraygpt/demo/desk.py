"""What the page can do, without a browser: every button is a method here."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch

from xraygpt.common.errors import InputError, without_path
from xraygpt.conversation import Answer, Busy
from xraygpt.conversation.attention import Attention, on_image
from xraygpt.demo.films import Film, open_film, stage
from xraygpt.demo.report import Format, Report, download, exported, split_report
from xraygpt.demo.sessions import MOST_FILMS, Session, Sessions
from xraygpt.experiment import ChatParts
from xraygpt.models.base import Generation
from xraygpt.processors.prompts import without_marks
from xraygpt.processors.text import split_sentences

log = logging.getLogger(__name__)

MOST_CHARACTERS = 2000
"""Of a question."""
Mode = Literal["greedy", "sampling", "beam search", "as measured"]
Span = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """Decoding as the page has it."""

    mode: str = "greedy"
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    num_beams: int = 3
    max_new_tokens: int = 120
    seed: int = 0


@dataclass
class Told:
    """An answer so far, as the page shows it.

    Attributes:
        text: Of the answer.
        report: Whether it is the draft of the report.
        done: Whether it is over.
        status: What there is to say about it.
    """

    text: str = ""
    report: bool = False
    done: bool = False
    status: str = ""


@dataclass
class Desk:
    """A model, and who talks to it.

    Attributes:
        parts: The model.
        name: Of the model, for people.
        synthetic: Whether it was trained on phantoms.
        examples: Files to pick from, with their captions.
    """

    parts: ChatParts
    name: str
    synthetic: bool
    examples: list[tuple[Path, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.attention = Attention(self.parts.engine)
        self.sessions = Sessions(self.parts.engine)
        prompts = self.parts.engine.renderer.prompts
        asked = without_marks(prompts[0]).strip() if prompts else ""
        self.report_prompt = asked or "Describe this chest X-ray as a radiologist would."

    # ---- images ----------------------------------------------------------------------------------

    def take(self, session: Session, uploads: list[str]) -> list[str]:
        """Take uploaded files into a session.

        Args:
            session: Whose.
            uploads: Files in the upload folder; they are moved away from there.

        Returns:
            What was wrong with those that were not taken, a sentence each.
        """
        wrong: list[str] = []
        for number, upload in enumerate(map(Path, uploads), start=1):
            if self.sessions.uploads.resolve() not in upload.resolve().parents:
                raise InputError("that file was not uploaded here")
            kept = session.folder / f"image-{os.urandom(8).hex()}"
            try:
                shutil.move(upload, kept)
            except FileNotFoundError:
                wrong.append(f"File {number} is no longer there; upload it again.")
                continue
            shutil.rmtree(upload.parent, ignore_errors=True)
            wrong += self._add(session, kept, f"File {number}")
        return wrong

    def take_example(self, session: Session, number: int) -> list[str]:
        """Take a copy of an example into a session; as `take`."""
        if not 0 <= number < len(self.examples):
            raise InputError("there is no such example")
        kept = session.folder / f"image-{os.urandom(8).hex()}"
        shutil.copyfile(self.examples[number][0], kept)
        return self._add(session, kept, "The example")

    def _add(self, session: Session, path: Path, name: str) -> list[str]:
        try:
            if len(session.films) >= MOST_FILMS:
                raise InputError(f"at most {MOST_FILMS} images fit into one conversation; clear it")
            session.films.append(open_film(path))
        except InputError as error:
            path.unlink(missing_ok=True)
            advice = r"[,;](?: or)? raise ReadLimits\.\w+(?: if that is right)?"  # for programmers
            return [re.sub(advice, "", without_path(error, path, name))]
        session.at = len(session.films) - 1
        return []

    def read(self, session: Session) -> str:
        """Let the model read what waits, so that the first answer starts sooner.

        Returns:
            What was done, for the status line.
        """
        if not session.lock.acquire(blocking=False):
            return ""
        try:
            self._show(session)
            count = session.conversation.prefill()
        except InputError as error:
            return self._plain(session, error)
        finally:
            session.lock.release()
        return f"The model has read the image: {count} tokens." if count else "Image taken."

    def _show(self, session: Session) -> None:
        """Give the conversation every image that it has not, at the frames shown."""
        read = [s for s in session.shown if self._was_asked_about(session, s)]
        wanted = [
            (i, film.frame)
            for i, film in enumerate(session.films)
            if i == session.at or all(i != shown for shown, _ in read)
        ]
        fresh = [key for key in wanted if key not in read]
        if session.shown == [*read, *fresh]:
            return
        session.conversation.withdraw()
        session.shown = read
        for number, frame in fresh:
            tensor = self.parts.read_image(session.films[number].path, frame)
            session.conversation.add_image(tensor)
            session.shown.append((number, frame))

    def _was_asked_about(self, session: Session, key: tuple[int, int]) -> bool:
        exchanges = session.conversation.exchanges
        return session.shown.index(key) < (exchanges[-1].images if exchanges else 0)

    def stage(self, session: Session) -> str:
        """HTML of the viewer."""
        film = session.film
        if film is None:
            return stage(None, "")
        label = f"Image {session.at + 1} of {len(session.films)}: {film.facts()}"
        heat = session.heat.get((session.at, film.frame))
        return stage(film, label, cast("np.ndarray | None", heat))

    # ---- answers ---------------------------------------------------------------------------------

    def draft(self, session: Session, settings: Settings) -> Iterator[Told]:
        """Draft the report."""
        if not session.films:
            raise InputError("upload an X-ray first, or pick an example")
        yield from self._answer(session, self.report_prompt, settings, report=True)

    def ask(self, session: Session, question: str, settings: Settings) -> Iterator[Told]:
        """Answer a question."""
        text = question.strip()
        if not text:
            raise InputError("the question is empty: write one, or pick an example question")
        if len(text) > MOST_CHARACTERS:
            raise InputError(
                f"the question has {len(text):,} characters; at most {MOST_CHARACTERS:,} are taken"
            )
        yield from self._answer(session, text, settings, report=False)

    def regenerate(self, session: Session, settings: Settings) -> Iterator[Told]:
        """Answer the last question anew; sampling draws with the seed given."""
        last = len(session.conversation.exchanges) - 1
        if last < 0:
            raise InputError("nothing was asked yet")
        yield from self._answer(session, None, settings, report=session.draft == last)

    def _answer(
        self, session: Session, question: str | None, settings: Settings, *, report: bool
    ) -> Iterator[Told]:
        if not session.lock.acquire(blocking=False):
            raise Busy("the last question is still being answered; Stop ends it")
        try:
            self.sessions.cool_down()
            how = self.decoding(settings)
            session.heat = {}
            if question is None:
                answer = session.conversation.regenerate(how)
            else:
                self._show(session)
                answer = session.conversation.ask(question, how)
            told = Told(report=report)
            try:
                for piece in answer:
                    told.text += piece
                    yield told
            finally:
                session.conversation.cancel()  # whoever listened may have gone
                answer.wait()
            told.text, told.done = answer.text(), True
            self._note(session, told, settings, answer)
            yield told
        except InputError as error:
            raise InputError(self._plain(session, error)) from None
        finally:
            session.lock.release()

    def _note(self, session: Session, told: Told, settings: Settings, answer: Answer) -> None:
        """What an answer leaves behind."""
        session.seed = answer.seed
        if told.report:
            session.draft = len(session.conversation.exchanges) - 1
            session.drafted = split_report(told.text)
            session.question, session.how = self.report_prompt, self.in_words(settings)
        ends = {"length": "Cut off at the token limit.", "cancelled": "Stopped."}
        parts = [ends.get(str(answer.ended), "")]
        if told.report and told.text and not session.drafted[1]:
            parts.append("This model wrote no heading “Impression”: all of it is under Findings.")
        if answer.seed is not None:
            parts.append(f"Seed {answer.seed}.")
        if answer.dropped:
            few = answer.dropped == 1
            parts.append(
                f"The oldest {'exchange' if few else f'{answer.dropped} exchanges'} no longer "
                f"{'fits' if few else 'fit'} into the context and {'was' if few else 'were'} left "
                "out of the prompt."
            )
        left = session.conversation.tokens_left(self.decoding(settings))
        parts.append(f"{left} tokens of context left.")
        told.status = " ".join(p for p in parts if p)

    def exchanges(self, session: Session) -> list[tuple[str, str]]:
        """Questions and answers so far, oldest first."""
        said = list(session.conversation.exchanges)
        return [(without_marks(e.question).strip(), e.answer) for e in said]

    def decoding(self, settings: Settings) -> Generation:
        """Settings of the page -> how to decode.

        Raises:
            InputError: They contradict each other.
        """
        mode = settings.mode
        tokens = int(settings.max_new_tokens)
        try:
            if mode == "as measured":
                return replace(self.parts.how, max_new_tokens=tokens, seed=int(settings.seed))
            common = Generation(
                max_new_tokens=tokens,
                repetition_penalty=settings.repetition_penalty,
                no_repeat_ngram_size=self.parts.how.no_repeat_ngram_size,
                seed=int(settings.seed),
            )
            if mode == "sampling":
                return replace(
                    common, do_sample=True, temperature=settings.temperature, top_p=settings.top_p
                )
            return replace(common, num_beams=int(settings.num_beams) if "beam" in mode else 1)
        except (TypeError, ValueError) as error:
            raise InputError(f"decoding: {error}") from None

    def in_words(self, settings: Settings) -> str:
        """Decoding, for an export."""
        how = vars(self.decoding(settings))
        neutral = vars(Generation())
        told = [f"{k} {v}" for k, v in how.items() if v != neutral[k] and k != "seed"]
        return ", ".join([settings.mode, *told])

    # ---- where it looked -------------------------------------------------------------------------

    def spans(self, session: Session, turn: int, *, words: bool) -> list[Span]:
        """Sentences or words of an answer, as ranges of characters."""
        exchanges = session.conversation.exchanges
        if not 0 <= turn < len(exchanges):
            return []
        text = exchanges[turn].answer
        if words:
            return [m.span() for m in re.finditer(r"[^\s.,;:!?]+", text)]
        found, at = [], 0
        for sentence in split_sentences(text):
            start = text.index(sentence, at)
            at = start + len(sentence)
            heading = re.match(r"(?i)(findings|impression):\s+", sentence)
            found.append((start + (heading.end() if heading else 0), at))
        return [s for s in found if s[0] < s[1]]

    def look(self, session: Session, turn: int, span: Span) -> str:
        """Find where the model looked for these words, and show it in the viewer.

        Returns:
            What to say about it.
        """
        looks = self.attention.look(session.conversation, *span, turn=turn)
        highest = max(float(look.heat.max()) for look in looks)
        session.heat = {}
        for key, look in zip(session.shown, looks, strict=False):
            film = session.films[key[0]]
            heat = on_image(look.heat, self.parts.fit, *film.size)
            session.heat[key] = heat / highest if highest else heat
        at = max(range(len(looks)), key=lambda i: float(looks[i].heat.sum()))
        if (
            at < len(session.shown)
            and (session.at, session.films[session.at].frame) not in (session.shown[: len(looks)])
        ):
            session.at = session.shown[at][0]
        text = session.conversation.exchanges[turn].answer[slice(*span)]
        quoted = text if len(text) < 60 else f"{text[:57]}…"
        parts = [f"“{quoted}”: {looks[0].to_images:.0%} of the attention went to images."]
        if len(looks) > 1:
            parts += [f"Image {i + 1}: {look.share:.0%}." for i, look in enumerate(looks)]
        if not highest:
            parts.append("Nowhere above the average.")
        return " ".join(parts)

    # ---- files -----------------------------------------------------------------------------------

    def export(
        self, session: Session, findings: str, impression: str, kind: Format
    ) -> dict[str, str]:
        """The report as a file for the browser to save."""
        facts = self.parts.facts
        written = (findings.strip(), impression.strip())
        if not any(written) and not session.conversation.exchanges:
            raise InputError("there is nothing to export yet: draft a report first")
        report = Report(
            findings=written[0],
            impression=written[1],
            edited=written != session.drafted,
            model=f"{self.name} ({facts['arch']}, xraygpt {facts['xraygpt']})",
            revision=str(facts.get("weights") or ""),
            prompt=session.question,
            decoding=session.how or "none",
            seed=session.seed,
            images=[film.facts() for film in session.films],
            conversation=[
                pair for i, pair in enumerate(self.exchanges(session)) if i != session.draft
            ],
            facts=facts,
        )
        picture = session.film.pixels() if session.film else None
        return download(exported(report, kind, picture), kind, report.date)

    def clear(self, session: Session) -> None:
        """Stop, forget, and delete the files."""
        if not session.wait_idle():
            raise InputError("the last answer does not stop; try again")
        session.conversation.clear()
        session.delete_files()
        session.folder.mkdir(mode=0o700)
        session.reset()

    def _plain(self, session: Session, error: Exception) -> str:
        """A message without the paths of private folders."""
        return without_path(error, session.folder)

    def film(self, session: Session) -> Film:
        """The one that is shown.

        Raises:
            InputError: None is.
        """
        if session.film is None:
            raise InputError("upload an X-ray first, or pick an example")
        return session.film


def out_of_memory(error: BaseException) -> bool:
    """Whether the device has no room left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError)
