"""What the page can do, without a browser: every button is a method here."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from xraygpt.common.errors import InputError, without_path
from xraygpt.conversation import Answer, Busy
from xraygpt.conversation.attention import Attention, on_image
from xraygpt.demo.display import DisplayedImage, open_film, stage
from xraygpt.demo.report import (
    SYNTHETIC_WARNING,
    Format,
    Report,
    download,
    exported,
    split_report,
)
from xraygpt.demo.sessions import MOST_FILMS, Draft, Session, Sessions
from xraygpt.experiment import ChatParts
from xraygpt.models.base import Generation
from xraygpt.processors.text import split_sentences
from xraygpt.prompting.content import without_marks
from xraygpt.tasks.plan import Planned

log = logging.getLogger(__name__)

MOST_CHARACTERS, MOST_REPORT = 2000, 20_000
"""Of a question; of Findings, of Impression."""
MOST_BEAMS = 8
MAP_SIDE = 512
"""Most pixels of a side of a map."""
_ENDS = {"length": "Cut off at the token limit. ", "cancelled": "Stopped. "}
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
        asked: Whether it was asked at all.
    """

    text: str = ""
    report: bool = False
    done: bool = False
    status: str = ""
    asked: bool = True


@dataclass
class DemoController:
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
        engine = self.parts.engine
        self.attention, self.sessions = Attention(engine), Sessions(engine)
        prompts = engine.renderer.prompts
        asked = without_marks(prompts[0]).strip() if prompts else ""
        self.report_prompt = asked or "Describe this chest X-ray as a radiologist would."

    def take(self, session: Session, uploads: list[str]) -> list[str]:
        """Take uploaded files into a session.

        Args:
            session: Whose.
            uploads: Files in the upload folder; they are moved away from there.

        Returns:
            What was wrong with those that were not taken, a sentence each.
        """
        wrong = []
        for number, upload in enumerate(uploads, start=1):
            kept = session.folder / f"image-{os.urandom(8).hex()}"
            try:
                self.sessions.take(Path(upload), kept)
            except InputError as error:
                wrong.append(f"File {number} {error}")
                continue
            wrong += self._add(session, kept, f"File {number}")
        return wrong

    def take_example(self, session: Session, number: int) -> list[str]:
        """Take a copy of an example into a session; as `take`."""
        if not 0 <= number < len(self.examples):
            raise InputError("there is no such example")
        if session.films:
            self.clear(session)  # another example is another case
        kept = session.folder / f"image-{os.urandom(8).hex()}"
        shutil.copyfile(self.examples[number][0], kept)
        return self._add(session, kept, "The example")

    def _add(self, session: Session, path: Path, name: str) -> list[str]:
        try:
            if len(session.films) >= MOST_FILMS:
                raise InputError(f"at most {MOST_FILMS} images fit into one conversation; clear it")
            session.films.append(open_film(path))
        except BaseException as error:
            path.unlink(missing_ok=True)
            if not isinstance(error, InputError):
                raise
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
            self.sessions.cool_down()
            self._show(session)
            count = session.conversation.prefill()
        finally:
            session.lock.release()
        told = f"The model has read {count} tokens of images." if count else "Image taken."
        several = len(session.films)
        if several > 1:
            told += (
                f" {several} images of one case: a model that was trained on one may fail with "
                "more. Clear all begins another case."
            )
        if session.draft is not None:
            told += " The draft was made without this image: draft again."
        return told

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
            image = self.parts.read_media(session.films[number].path, frame)
            session.conversation.add_image(image)
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
        return stage(film, label, session.heat.get((session.at, film.frame)))

    # ---- answers ---------------------------------------------------------------------------------

    def draft(
        self, session: Session, settings: Settings, ticket: int | None = None
    ) -> Iterator[Told]:
        """Draft the report of all images; the conversation begins anew with it.

        So the draft depends on images, prompt and decoding alone, as its export says.
        """
        if not session.films:
            raise InputError("upload an X-ray first, or pick an example")
        yield from self._answer(session, self.report_prompt, settings, ticket, report=True)

    def _planned(self, session: Session) -> Planned:
        """What to ask for a report with; where the YAML has a plan, what the model found."""
        if self.parts.plan is None:
            return Planned(self.report_prompt)
        images = [self.parts.read_media(f.path, f.frame) for f in session.films]
        return self.parts.plan(images, self.report_prompt)

    def ask(
        self, session: Session, question: str, settings: Settings, ticket: int | None = None
    ) -> Iterator[Told]:
        """Answer a question."""
        text = question.strip()
        if not text:
            raise InputError("the question is empty: write one, or pick an example question")
        if len(text) > MOST_CHARACTERS:
            raise InputError(
                f"the question has {len(text):,} characters; at most {MOST_CHARACTERS:,} are taken"
            )
        yield from self._answer(session, text, settings, ticket, report=False)

    def regenerate(
        self, session: Session, settings: Settings, ticket: int | None = None
    ) -> Iterator[Told]:
        """Answer the last question anew; sampling draws with the seed given."""
        last = len(session.conversation.exchanges) - 1
        if last < 0:
            raise InputError("nothing was asked yet")
        report = session.draft is not None and session.draft.turn == last
        yield from self._answer(session, None, settings, ticket, report=report)

    def _answer(
        self,
        session: Session,
        question: str | None,
        settings: Settings,
        ticket: int | None,
        *,
        report: bool,
    ) -> Iterator[Told]:
        """Pieces of an answer. Whoever listens may leave; the session is freed all the same."""
        how = self.decoding(settings)
        if not session.lock.acquire(blocking=False):
            raise Busy("the last question is still being answered; Stop ends it")
        told, answer = Told(report=report), None
        try:
            if ticket is not None and ticket <= session.stopped:
                yield Told(report=report, done=True, status="Stopped before it began.", asked=False)
                return
            if report and question is not None and session.conversation.exchanges:
                session.conversation.clear()
                session.shown, session.draft = [], None
            answer = self._begin(session, question, how, plan=report)
            if ticket is not None and ticket <= session.stopped:
                session.conversation.cancel()
            for piece in answer:
                told.text += piece
                yield told
            self._note(session, told, settings, answer)
            yield told
        finally:
            if answer is None or answer.over:
                session.lock.release()
            else:  # waiting here would hold up everybody's page
                session.conversation.cancel()
                rest = (session, told, settings, answer)
                threading.Thread(target=self._settle, args=rest, daemon=True).start()

    def _begin(self, session: Session, question: str | None, how: Generation, plan: bool) -> Answer:
        self.sessions.cool_down()
        session.heat = {}
        talk = session.conversation
        if question is None:
            return talk.regenerate(how)
        asked = self._planned(session) if plan else Planned(question)
        self._show(session)
        return talk.ask(asked.question, how, caption=asked.caption, bonus=asked.bonus)

    def _settle(self, session: Session, told: Told, settings: Settings, answer: Answer) -> None:
        """Free a session whose listener has left, when its answer has stopped."""
        try:
            answer.wait()
            if answer.ended is not None:
                self._note(session, told, settings, answer)
        finally:
            session.lock.release()

    def _note(self, session: Session, told: Told, settings: Settings, answer: Answer) -> None:
        """What an answer leaves behind."""
        told.text, told.done = answer.text(), True
        exchanges = session.conversation.exchanges
        if told.report:
            findings, impression = split_report(told.text)
            session.draft = Draft(
                turn=len(exchanges) - 1,
                findings=findings,
                impression=impression,
                prompt=exchanges[-1].plain,
                decoding=self.in_words(settings),
                seed=answer.seed,
                ended=str(answer.ended),
                images=[
                    f"image {film + 1}: {session.films[film].facts(frame)}"
                    for film, frame in session.shown[: exchanges[-1].images]
                ],
            )
            if findings and not impression and answer.ended == "end":
                told.status = "The model wrote no heading “Impression”: all is under Findings. "
        told.status += _ENDS.get(str(answer.ended), "")
        if answer.seed is not None:
            told.status += f"Seed {answer.seed}. "
        if answer.dropped:
            few = answer.dropped == 1
            told.status += (
                f"The oldest {'exchange' if few else f'{answer.dropped} exchanges'} no longer "
                f"{'fits' if few else 'fit'} into the context and {'was' if few else 'were'} left "
                "out of the prompt. "
            )
        left = session.conversation.tokens_left(self.decoding(settings))
        told.status += f"{left} tokens of context left."

    def exchanges(self, session: Session) -> list[tuple[str, str]]:
        """Questions and answers so far, oldest first."""
        said = list(session.conversation.exchanges)
        return [(e.plain, e.answer) for e in said]

    def decoding(self, settings: Settings) -> Generation:
        """Settings of the page -> how to decode.

        Raises:
            InputError: They contradict each other.
        """
        mode = settings.mode
        try:
            tokens, seed = int(settings.max_new_tokens), int(settings.seed or 0)
            numbers = (settings.temperature, settings.top_p, settings.repetition_penalty)
            if not all(map(math.isfinite, numbers)) or min(numbers) <= 0:
                raise ValueError("temperature, top-p and repetition penalty must be above 0")
            if not 0 <= seed < 2**63:
                raise ValueError("the seed must lie in 0..2**63 - 1")
            if not 1 <= settings.num_beams <= MOST_BEAMS:
                raise ValueError(f"beams must lie in 1..{MOST_BEAMS}")
            if mode == "as measured":
                return replace(self.parts.how, max_new_tokens=tokens, seed=seed)
            common = Generation(
                max_new_tokens=tokens,
                repetition_penalty=float(settings.repetition_penalty),
                no_repeat_ngram_size=self.parts.how.no_repeat_ngram_size,
                seed=seed,
            )
            if mode == "sampling":
                return replace(
                    common,
                    do_sample=True,
                    temperature=float(settings.temperature),
                    top_p=float(settings.top_p),
                )
            return replace(common, num_beams=int(settings.num_beams) if "beam" in mode else 1)
        except (TypeError, ValueError, OverflowError) as error:
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
        read = session.shown[: len(looks)]
        highest = max(float(look.heat.max()) for look in looks)
        session.heat = {}
        for key, look in zip(read, looks, strict=True):
            rows, columns = session.films[key[0]].size
            scale = min(1.0, MAP_SIDE / max(rows, columns))
            heat = on_image(
                look.heat,
                self.parts.fit,
                max(round(rows * scale), 1),
                max(round(columns * scale), 1),
            )
            session.heat[key] = heat / highest if highest else heat
        if (session.at, self.film(session).frame) not in read:  # show one that the model had read
            at = max(range(len(looks)), key=lambda i: float(looks[i].heat.sum()))
            session.at, frame = read[at]
            session.films[session.at].turn_to(frame)
        text = session.conversation.exchanges[turn].answer[slice(*span)]
        quoted = text if len(text) < 60 else f"{text[:57]}…"
        parts = [f"“{quoted}”: {looks[0].to_images:.0%} of the attention went to images."]
        if len(looks) > 1:
            parts += [
                f"{self._name(session, key)}: {look.share:.0%}."
                for key, look in zip(read, looks, strict=True)
            ]
        if not highest:
            parts.append("Nowhere above the average.")
        return " ".join(parts)

    def _name(self, session: Session, key: tuple[int, int]) -> str:
        film, frame = key
        several = session.films[film].frames > 1
        return f"Image {film + 1}" + (f", frame {frame + 1}" if several else "")

    # ---- files -----------------------------------------------------------------------------------

    def export(
        self, session: Session, findings: str, impression: str, kind: Format
    ) -> dict[str, str]:
        """The report as a file for the browser to save."""
        facts, draft = self.parts.facts, session.draft
        written = (findings.strip(), impression.strip())
        if max(map(len, written)) > MOST_REPORT:
            raise InputError(f"a report of more than {MOST_REPORT:,} characters is not exported")
        if not any(written) and not session.conversation.exchanges:
            raise InputError("there is nothing to export yet: draft a report first")
        asked = self.exchanges(session)
        report = Report(
            findings=written[0],
            impression=written[1],
            edited=draft is None or written != (draft.findings, draft.impression),
            model=f"{self.name} ({facts['arch']}, xraygpt {facts['xraygpt']})",
            revision=str(facts.get("weights") or ""),
            prompt=draft.prompt if draft else "",
            decoding=draft.decoding if draft else "",
            seed=draft.seed if draft else None,
            ended=draft.ended if draft else "",
            images=draft.images if draft else [],
            conversation=[p for i, p in enumerate(asked) if not draft or i != draft.turn],
            facts=facts,
            warning=SYNTHETIC_WARNING if self.synthetic else "",
        )
        film = session.film
        picture = (
            (film.pixels(), f"Image {session.at + 1} as shown: {film.facts()}") if film else None
        )
        return download(exported(report, kind, picture), kind, report.date)

    def clear(self, session: Session) -> None:
        """Stop, forget, and delete the files."""
        with session.alone() as held:
            if not held:
                raise InputError("the last answer does not stop; try again")
            session.conversation.clear()
            session.delete_files()
            session.folder.mkdir(mode=0o700)
            session.reset()

    def film(self, session: Session) -> DisplayedImage:
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
