"""The page: Gradio components around `DemoController`."""

from __future__ import annotations

import functools
import html
import inspect
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any, cast

import gradio as gr

from xraygpt.common.errors import InputError
from xraygpt.demo import display
from xraygpt.demo.controller import DemoController, Settings, Told, out_of_memory
from xraygpt.demo.layout import QUESTIONS, Layout, asset, no_words, status
from xraygpt.demo.report import Format, split_report
from xraygpt.demo.sessions import PREFIX, Session

log = logging.getLogger(__name__)

LANE = "model"
"""Everything that computes with the model waits in this one queue."""
WAITING = 32
"""Most events in the queue; more are told to come back."""
_OURS = re.compile(rf"\S*{re.escape(PREFIX)}[^\s:]*")  # private folders
Values = dict[Any, Any]


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A user's mistake becomes a sentence on the page; anything else one without its trace."""

    @functools.wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise _on_page(error) from None

    @functools.wraps(handler)
    def streamed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from handler(*args, **kwargs)
        except Exception as error:
            raise _on_page(error) from None

    return streamed if inspect.isgeneratorfunction(handler) else wrapped


def _on_page(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, InputError):
        message = _OURS.sub("the image", str(error))
    elif out_of_memory(error):
        message = "The device has no memory left: close other pages, or start with --low-resource."
    else:
        where = traceback.extract_tb(error.__traceback__)[-1]
        # Places and kinds; the message itself may quote a report.
        log.error("%s at %s:%s", type(error).__name__, where.filename, where.lineno)
        message = f"Something went wrong inside ({type(error).__name__}); the page goes on."
    return gr.Error(html.escape(message), duration=None, print_exception=False)


class Page(Layout):
    """What happens when a component is touched.

    Args:
        desk: Does the work.
    """

    def __init__(self, desk: DemoController) -> None:
        super().__init__(desk)
        with self.blocks:
            self._wire_images()
            self._wire_answers()
            self._wire_rest()

    # ---- events ----------------------------------------------------------------------------------

    def _wire_images(self) -> None:
        self.shown = [
            self.which, self.stage, self.doubts, self.facts, self.frame, self.tools, self.level,
            self.width, self.invert, self.looked,
        ]  # fmt: skip
        quick: dict[str, Any] = {
            "concurrency_id": "view",  # decoding a large file takes a core for a second
            "concurrency_limit": 2,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        lane: dict[str, Any] = {"concurrency_id": LANE, "concurrency_limit": 1}
        reading: dict[str, Any] = {"outputs": [self.status], "show_progress": "hidden", **lane}
        taken = self.upload.upload(
            told(self.on_upload), self.upload, [self.upload, *self.shown], api_name="upload"
        )
        taken.success(told(self.on_read), api_visibility="private", **reading)
        texts = [self.findings, self.impression, self.chat, self.turn, self.words]
        picked = self.examples.click(
            told(self.on_example), None, [*self.shown, *texts], api_visibility="private"
        )
        picked.success(told(self.on_read), api_visibility="private", **reading)
        self.which.input(told(self.on_which), self.which, self.shown, **quick)
        turned = self.frame.release(told(self.on_frame), self.frame, self.shown, **quick)
        turned.success(told(self.on_read), api_visibility="private", **reading)
        view: list[Any] = [self.level, self.width, self.invert]
        for control in view:
            control.input(told(self.on_view), view, self.stage, trigger_mode="always_last", **quick)
        self.own.click(told(self.on_own_view), None, self.shown, **quick)
        self.opacity.input(None, self.opacity, None, js=asset("demo_opacity.js"))

    def _wire_answers(self) -> None:
        self.busy = [self.draft, self.ask, self.again, self.stop, *self.exports.values()]
        answer = [self.findings, self.impression, self.chat, self.status, self.question]
        lane: dict[str, Any] = {"concurrency_id": LANE, "concurrency_limit": 1}
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        starts = [
            ([self.draft.click], self.on_draft, "draft"),
            ([self.ask.click, self.question.submit], self.on_ask, "ask"),
            ([self.again.click], self.on_again, "regenerate"),
        ]
        for triggers, handler, name in starts:
            begun = gr.on(
                triggers,
                told(self.on_begin),
                None,
                [*self.busy, self.status, self.ticket],
                api_visibility="private",
                show_progress="hidden",  # queued: an error outside the queue is not shown
            )
            ran = begun.success(
                told(handler),
                {self.question, self.ticket, *self.settings},
                answer,
                api_name=name,
                show_progress="minimal",
                show_progress_on=self.status,
                **lane,
            )
            ran.failure(lambda: status("Not answered."), None, self.status, **quick)
            for over in (ran.then, ran.failure):  # `then` alone passes a failure by
                free = over(self.on_free, None, self.busy, api_visibility="private", **quick)
                free.then(
                    told(self.on_rest),
                    self.unit,
                    [self.turn, self.words, self.stage, self.looked],
                    api_visibility="private",
                    **quick,
                )
        self.stop.click(told(self.on_stop), None, self.stop, api_name="stop", **quick)
        self.questions.click(
            told(self.on_question), None, self.question, api_visibility="private", **quick
        )

    def _wire_rest(self) -> None:
        lane: dict[str, Any] = {"concurrency_id": LANE, "concurrency_limit": 1}
        looked = self.words.click(
            told(self.on_words),
            None,
            self.shown,
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=self.looked,
            **lane,
        )
        looked.success(None, None, None, js=asset("demo_show.js"))
        for control in (self.unit, self.turn):
            control.input(
                told(self.on_unit),
                [self.unit, self.turn],
                self.words,
                api_visibility="private",
            )
        for kind, button in self.exports.items():
            made = button.click(
                told(self._exporter(cast("Format", kind))),
                [self.findings, self.impression],
                self.payload,
                api_name=f"export_{kind}",
                show_progress="hidden",
            )
            made.success(None, self.payload, None, js=asset("demo_save.js"))
        gr.on(
            [self.clear.click, self.chat.clear],
            told(self.on_clear),
            None,
            [
                *self.shown, *self.busy, self.findings, self.impression, self.chat, self.status,
                self.turn, self.words, self.question, self.payload, self.upload,
            ],
            api_name="clear",
        )  # fmt: skip
        self.blocks.load(told(self.on_load), None, None, api_visibility="private")
        self.blocks.unload(self.on_unload)

    # ---- images ----------------------------------------------------------------------------------

    def session(self, request: gr.Request) -> Session:
        """Of the page that a request comes from."""
        return self.desk.sessions.of(request.session_hash)

    def on_load(self, request: gr.Request) -> None:
        """Open a session."""
        self.session(request)

    def on_unload(self, request: gr.Request) -> None:
        """End it: the page was closed."""
        self.desk.sessions.end(request.session_hash)

    def on_upload(self, files: list[str] | None, request: gr.Request) -> Values:
        """Take files; say what is wrong with those that cannot be taken."""
        session = self.session(request)
        for sentence in self.desk.take(session, files or []):
            gr.Warning(html.escape(sentence), duration=None, title="Not taken")
        # Not raised: the list of files must be emptied, or the next upload brings them again.
        return {self.upload: None, **self._view(session)}

    def on_example(self, event: gr.EventData, request: gr.Request) -> Values:
        """Take an example."""
        session = self.session(request)
        if wrong := self.desk.take_example(session, int(event.pick)):
            raise InputError(wrong[0])
        return self._fresh(session)

    def on_read(self, request: gr.Request) -> str:
        """Let the model read ahead."""
        return status(self.desk.read(self.session(request)))

    def on_which(self, number: int, request: gr.Request) -> Values:
        """Show another image."""
        session = self.session(request)
        if not 0 <= int(number) < len(session.films):
            raise InputError("there is no such image")
        session.at = int(number)
        return self._view(session)

    def on_frame(self, number: int, request: gr.Request) -> Values:
        """Turn to another frame."""
        session = self.session(request)
        self.desk.film(session).turn_to(int(number) - 1)
        return self._view(session)

    def on_view(self, level: float, width: float, invert: bool, request: gr.Request) -> str:
        """Another window, or a negative."""
        session = self.session(request)
        film = self.desk.film(session)
        before = film.window, film.invert
        own = film.own_window
        film.window = None if own is None or own == (level, width) else (level, max(width, 1))
        film.invert = bool(invert)
        try:
            return self.desk.stage(session)
        except BaseException:
            film.window, film.invert = before
            raise

    def on_own_view(self, request: gr.Request) -> Values:
        """The window of the file."""
        session = self.session(request)
        film = self.desk.film(session)
        film.window, film.invert = None, False
        return self._view(session)

    def _view(self, session: Session) -> Values:
        """All that shows the image at hand."""
        film = session.film
        choices = [(f"Image {i + 1}", i) for i in range(len(session.films))]
        values: Values = {
            self.which: gr.update(
                choices=choices, value=session.at if choices else None, visible=len(choices) > 1
            ),
            self.stage: self.desk.stage(session),
            self.looked: self.legend(""),
        }
        if film is None:
            hidden = (self.doubts, self.facts, self.frame, self.tools)
            return values | {part: gr.update(visible=False) for part in hidden}
        doubts = html.escape(" ".join(film.doubts))
        gate = f'<p role="alert">{doubts} You can go on; what the model says of it is a guess.</p>'
        values |= {
            self.doubts: gr.update(value=gate if doubts else "", visible=bool(doubts)),
            self.facts: gr.update(
                value=f'<p class="xg-facts">{html.escape(film.facts())}. The model reads the file '
                "as in training, whatever the view.</p>",
                visible=True,
            ),
            self.frame: gr.update(
                maximum=max(film.frames, 2), value=film.frame + 1, visible=film.frames > 1
            ),
            self.tools: gr.update(visible=True),
            self.invert: film.invert,
        }
        return values | self._window(film)

    def _window(self, film: display.DisplayedImage) -> Values:
        window, ends = film.window or film.own_window, film.meta.get("values")
        if window is None or not isinstance(ends, tuple):
            return {part: gr.update(visible=False) for part in (self.level, self.width)}
        low, high = min(ends[0], window[0]), max(ends[1], window[0])
        step = 1 if high - low > 20 else (high - low or 1) / 100
        widest = max(2 * (high - low), window[1])
        return {
            self.level: gr.update(
                minimum=low, maximum=high, value=window[0], step=step, visible=True
            ),
            self.width: gr.update(
                minimum=1, maximum=widest, value=window[1], step=step, visible=True
            ),
        }

    # ---- answers ---------------------------------------------------------------------------------

    def on_begin(self, request: gr.Request) -> Values:
        """While it answers, only Stop can be pressed."""
        off = {part: gr.update(interactive=False) for part in self.busy}
        return {
            **off,
            self.stop: gr.update(interactive=True),
            self.status: status("Answering … Stop ends it."),
            self.ticket: self.session(request).begin(),
        }

    def on_free(self) -> Values:
        """It has answered, or could not; needs no session, which may be what was wrong."""
        on = {part: gr.update(interactive=True) for part in self.busy}
        return {**on, self.stop: gr.update(interactive=False)}

    def on_rest(self, unit: str, request: gr.Request) -> Values:
        """What there is to click at now."""
        session = self.session(request)
        return {
            **self._turns(session, unit),
            self.stage: self.desk.stage(session),
            self.looked: self.legend(""),
        }

    def on_draft(self, given: Values, request: gr.Request) -> Iterator[Values]:
        """Draft the report."""
        session = self.session(request)
        answers = self.desk.draft(session, self._settings(given), self._ticket(given))
        yield from self._stream(session, answers, self.desk.report_prompt)

    def on_ask(self, given: Values, request: gr.Request) -> Iterator[Values]:
        """Answer a question."""
        session = self.session(request)
        question = given[self.question] or ""
        answers = self.desk.ask(session, question, self._settings(given), self._ticket(given))
        for i, values in enumerate(self._stream(session, answers, question)):
            taken = {self.question: ""} if i == 0 and values.get(self.chat) else {}
            yield taken | values

    def on_again(self, given: Values, request: gr.Request) -> Iterator[Values]:
        """Answer the last question anew."""
        session = self.session(request)
        asked = [question for question, _ in self.desk.exchanges(session)][-1:]
        answers = self.desk.regenerate(session, self._settings(given), self._ticket(given))
        yield from self._stream(session, answers, "".join(asked))

    def _ticket(self, given: Values) -> int | None:
        return None if given[self.ticket] is None else int(given[self.ticket])

    def _settings(self, given: Values) -> Settings:
        return Settings(*(given[part] for part in self.settings))

    def _stream(self, session: Session, answers: Iterator[Told], question: str) -> Iterator[Values]:
        for so_far in answers:
            if not so_far.asked:
                yield {self.status: status(so_far.status)}
                return
            values: Values = {self.chat: self._messages(session, so_far, question)}
            if so_far.report:
                findings, impression = split_report(so_far.text, done=so_far.done)
                values |= {self.findings: findings, self.impression: impression}
            if so_far.done:
                values[self.status] = status(so_far.status)
            yield values

    def _messages(self, session: Session, so_far: Told, question: str) -> list[dict[str, str]]:
        pairs = self.desk.exchanges(session)
        if not so_far.done:
            pairs = [*pairs, (question, so_far.text or "…")]
        return [
            {"role": role, "content": html.escape(text, quote=False)}  # Gradio renders HTML in it
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]

    def on_stop(self, request: gr.Request) -> Any:
        """Stop the answer under way, and the question that waits for its turn."""
        self.session(request).stop()
        return gr.update(interactive=False)

    def on_question(self, event: gr.EventData) -> str:
        """Take an example question."""
        return QUESTIONS[int(event.pick)]

    # ---- where it looked, files, the end ---------------------------------------------------------

    def on_unit(self, unit: str, turn: int | None, request: gr.Request) -> str:
        """Sentences or words, of which answer."""
        session = self.session(request)
        return self._words(session, unit, len(self.desk.exchanges(session)) - 1, turn)

    def _turns(self, session: Session, unit: str) -> Values:
        """The last answer to click at, and the others to choose from."""
        asked = self.desk.exchanges(session)
        names = [
            "the draft"
            if session.draft and i == session.draft.turn
            else f"{i + 1}. {question[:50]}"
            for i, (question, _) in enumerate(asked)
        ]
        last = len(asked) - 1
        choices = [(name, i) for i, name in enumerate(names)]
        return {
            self.turn: gr.update(
                choices=choices, value=last if asked else None, visible=len(asked) > 1
            ),
            self.words: self._words(session, unit, last),
        }

    def on_words(self, event: gr.EventData, request: gr.Request) -> Values:
        """Show where it looked for the words clicked."""
        session = self.session(request)
        turn, start, end = (int(part) for part in str(event.pick).split("-"))
        said = self.desk.look(session, turn, (start, end))
        return self._view(session) | {self.looked: self.legend(said)}

    def _words(self, session: Session, unit: str, last: int, turn: int | None = None) -> str:
        turn = last if turn is None else int(turn)
        spans = self.desk.spans(session, turn, words=unit == "Words")
        if not spans:
            return no_words()
        text = session.conversation.exchanges[turn].answer
        cells = "".join(
            f'<button type="button" data-pick="{turn}-{a}-{b}">{html.escape(text[a:b])}</button> '
            for a, b in spans
        )
        label = f"{unit} of the answer"
        return f'<div class="xg-words" role="group" aria-label="{label}">{cells}</div>'

    def _exporter(self, kind: Format) -> Callable[..., Any]:
        def export(findings: str, impression: str, request: gr.Request) -> dict[str, str]:
            session = self.session(request)
            return self.desk.export(session, findings or "", impression or "", kind)

        return export

    def on_clear(self, request: gr.Request) -> Values:
        """As if just opened."""
        session = self.session(request)
        self.desk.clear(session)
        return {
            **self._fresh(session),
            **self.on_free(),
            self.question: "",
            self.payload: None,
            self.upload: None,
            self.status: status("Cleared: the images and the conversation are deleted."),
        }

    def _fresh(self, session: Session) -> Values:
        """Nothing was said yet."""
        return {
            **self._view(session),
            self.findings: "",
            self.impression: "",
            self.chat: [],
            self.turn: gr.update(choices=[], value=None, visible=False),
            self.words: no_words(),
        }
