"""Event handlers of the page, which return new values for its components."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from xraygpt.answering.wording import predicted_rows
from xraygpt.common.errors import InputError
from xraygpt.demo.controller import DemoController
from xraygpt.demo.decoding import FAST, DecodingSettings
from xraygpt.demo.display import DisplayedImage
from xraygpt.demo.layout import NO_SPANS_HTML, Layout, predicted_html, status_html
from xraygpt.demo.maps import answer_spans
from xraygpt.demo.report import Format, split_report
from xraygpt.demo.responder import AnswerUpdate, question_answers
from xraygpt.demo.sessions import Session
from xraygpt.tasks.payload import Remark

_READS_IMAGE = "The model reads the file as in training; viewer settings do not change that."
_READS_CLIP = "The model reads the frames that the player shows."

Values = dict[Any, Any]
"""Maps components to their new values or updates."""


class _Handlers:
    """Base class with access to the controller, the components and a request's session.

    Args:
        controller: The controller that does the work.
        layout: The page's components.
    """

    def __init__(self, controller: DemoController, layout: Layout) -> None:
        self.controller, self.layout = controller, layout

    def session(self, request: gr.Request) -> Session:
        """Return the session of the page that sent a request."""
        return self.controller.sessions.get(request.session_hash)


class ImageHandlers(_Handlers):
    """Handlers for uploads, examples and the viewer."""

    def on_upload(self, files: list[str] | None, request: gr.Request) -> Values:
        """Add files, with a warning for each that cannot be added."""
        session = self.session(request)
        for message in self.controller.images.add_uploads(session, files or []):
            gr.Warning(html.escape(message), duration=None, title="Not added")
        # No error is raised: the file list must be emptied, or the next upload sends it again.
        return {self.layout.upload: None, **self.view(session)}

    def on_example(self, event: gr.EventData, request: gr.Request) -> Values:
        """Start a new case with an example image."""
        session = self.session(request)
        if errors := self.controller.images.add_example(session, int(event.pick)):
            raise InputError(errors[0])
        return self.empty_page(session)

    def on_prefill(self, request: gr.Request) -> str:
        """Run new images through the model before a question is asked."""
        return status_html(self.controller.images.prefill(self.session(request)))

    def on_select(self, number: int, request: gr.Request) -> Values:
        """Show another image."""
        session = self.session(request)
        if not 0 <= int(number) < len(session.images):
            raise InputError("there is no such image")
        session.selected = int(number)
        return self.view(session)

    def on_frame(self, number: int, request: gr.Request) -> Values:
        """Show another frame."""
        session = self.session(request)
        session.require_image().show_frame(int(number) - 1)
        return self.view(session)

    def on_window(self, level: float, width: float, invert: bool, request: gr.Request) -> str:
        """Change the window and the inversion."""
        session = self.session(request)
        image = session.require_image()
        before = image.window, image.invert
        default = image.file_window
        is_default = default is None or default == (level, width)
        image.window = None if is_default else (level, max(width, 1))
        image.invert = bool(invert)
        try:
            return self.controller.images.viewer(session)
        except BaseException:
            image.window, image.invert = before
            raise

    def on_reset_view(self, request: gr.Request) -> Values:
        """Return to the file's own window."""
        session = self.session(request)
        image = session.require_image()
        image.window, image.invert = None, False
        return self.view(session)

    def view(self, session: Session) -> Values:
        """Return new values for everything that shows the selected image."""
        layout, image = self.layout, session.selected_image
        choices = [(f"Image {i + 1}", i) for i in range(len(session.images))]
        values: Values = {
            layout.image_choice: gr.update(
                choices=choices,
                value=session.selected if choices else None,
                visible=len(choices) > 1,
            ),
            layout.map_text: layout.map_html(""),
            **self._picture(session),
        }
        if image is None:
            hidden = (layout.warnings, layout.facts, layout.frame, layout.tools)
            return values | {part: gr.update(visible=False) for part in hidden}
        warnings = html.escape(" ".join(self.controller.warnings(image)))
        alert = (
            f'<p role="alert">{warnings} You can continue, but the model\'s answers about it are '
            "guesses.</p>"
        )
        values |= {
            layout.warnings: gr.update(value=alert if warnings else "", visible=bool(warnings)),
            layout.facts: gr.update(
                value=f'<p class="xg-facts">{html.escape(image.description())}. '
                f"{_READS_CLIP if image.player else _READS_IMAGE}</p>",
                visible=True,
            ),
            layout.frame: gr.update(
                maximum=max(image.num_frames, 2),
                value=image.frame + 1,
                visible=image.num_frames > 1,
            ),
            layout.tools: gr.update(visible=not image.player),
            layout.invert: image.invert,
        }
        return values | self._window(image)

    def _picture(self, session: Session) -> Values:
        """Return new values for the viewer of images and the player of clips, one of them shown."""
        image = session.selected_image
        player = "" if image is None else image.player
        return {
            self.layout.viewer: gr.update(
                value=self.controller.images.viewer(session), visible=not player
            ),
            self.layout.player: gr.update(value=player, visible=bool(player)),
        }

    def _window(self, image: DisplayedImage) -> Values:
        level, width = self.layout.level, self.layout.width
        window, value_range = image.window or image.file_window, image.meta.get("values")
        if window is None or not isinstance(value_range, tuple):
            return {part: gr.update(visible=False) for part in (level, width)}
        low, high = min(value_range[0], window[0]), max(value_range[1], window[0])
        step = 1 if high - low > 20 else (high - low or 1) / 100
        max_width = max(2 * (high - low), window[1])
        return {
            level: gr.update(minimum=low, maximum=high, value=window[0], step=step, visible=True),
            width: gr.update(
                minimum=1, maximum=max_width, value=window[1], step=step, visible=True
            ),
        }

    def empty_page(self, session: Session) -> Values:
        """Return values that show the selected image with an empty report and conversation."""
        layout = self.layout
        return {
            **self.view(session),
            layout.findings: "",
            layout.impression: "",
            layout.chat: [],
            layout.answer_choice: gr.update(choices=[], value=None, visible=False),
            layout.spans: NO_SPANS_HTML,
            layout.remarks: "",
            layout.predicted: "",
        }


class AnswerHandlers(_Handlers):
    """Handlers for drafts, questions and answers."""

    @property
    def buttons(self) -> list[Any]:
        """Buttons whose state depends on whether an answer is being generated."""
        layout = self.layout
        return [
            layout.draft,
            layout.fast,
            layout.ask,
            layout.regenerate,
            layout.stop,
            *layout.exports.values(),
        ]

    def on_begin(self, request: gr.Request) -> Values:
        """Disable all buttons except Stop, and assign a ticket to the question."""
        off = {part: gr.update(interactive=False) for part in self.buttons}
        return {
            **off,
            self.layout.stop: gr.update(interactive=True),
            self.layout.status: status_html("Answering … Stop cancels it."),
            self.layout.ticket: self.session(request).next_ticket(),
        }

    def on_done(self) -> Values:
        """Enable the buttons again, without the session, because opening it may have failed."""
        on = {part: gr.update(interactive=True) for part in self.buttons}
        return {**on, self.layout.stop: gr.update(interactive=False)}

    def on_draft(self, inputs: Values, request: gr.Request) -> Iterator[Values]:
        """Draft the report."""
        session, responder = self.session(request), self.controller.responder
        updates = responder.draft(session, self._settings(inputs), self._ticket(inputs))
        yield from self._stream(session, updates, responder.report_prompt)

    def on_fast_draft(self, inputs: Values, request: gr.Request) -> Iterator[Values]:
        """Draft the report with greedy decoding."""
        session, responder = self.session(request), self.controller.responder
        settings = replace(self._settings(inputs), mode=FAST)
        updates = responder.draft(session, settings, self._ticket(inputs))
        yield from self._stream(session, updates, responder.report_prompt)

    def on_ask(self, inputs: Values, request: gr.Request) -> Iterator[Values]:
        """Answer a question and empty the question box once the answer starts."""
        session = self.session(request)
        question = inputs[self.layout.question] or ""
        updates = self.controller.responder.ask(
            session, question, self._settings(inputs), self._ticket(inputs)
        )
        for i, values in enumerate(self._stream(session, updates, question)):
            started = i == 0 and values.get(self.layout.chat)
            yield ({self.layout.question: ""} if started else {}) | values

    def on_regenerate(self, inputs: Values, request: gr.Request) -> Iterator[Values]:
        """Answer the last question again."""
        session = self.session(request)
        last_question = [question for question, _ in question_answers(session)][-1:]
        updates = self.controller.responder.regenerate(
            session, self._settings(inputs), self._ticket(inputs)
        )
        yield from self._stream(session, updates, "".join(last_question))

    def on_stop(self, request: gr.Request) -> Any:
        """Stop the current answer and all queued questions."""
        self.session(request).stop()
        return gr.update(interactive=False)

    def on_example_question(self, event: gr.EventData) -> str:
        """Copy an example question into the question box."""
        return self.layout.questions_offered[int(event.pick)]

    def _ticket(self, inputs: Values) -> int | None:
        ticket = inputs[self.layout.ticket]
        return None if ticket is None else int(ticket)

    def _settings(self, inputs: Values) -> DecodingSettings:
        return DecodingSettings(*(inputs[part] for part in self.layout.settings))

    def _stream(
        self, session: Session, updates: Iterator[AnswerUpdate], question: str
    ) -> Iterator[Values]:
        layout = self.layout
        for update in updates:
            if not update.started:
                yield {layout.status: status_html(update.status)}
                return
            values: Values = {layout.chat: self._messages(session, update, question)}
            if update.is_report:
                findings, impression = split_report(update.text, done=update.done)
                values |= {layout.findings: findings, layout.impression: impression}
            if update.status or update.done:
                values[layout.status] = status_html(update.status)
            yield values

    def _messages(
        self, session: Session, update: AnswerUpdate, question: str
    ) -> list[dict[str, str]]:
        pairs = question_answers(session)
        if not update.done:
            pairs = [*pairs, (question, update.text or "…")]
        return [
            {"role": role, "content": html.escape(text, quote=False)}  # Gradio renders HTML in it
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]


class MapHandlers(_Handlers):
    """Handlers for attention maps of an answer's words.

    Args:
        controller: The controller that does the work.
        layout: The page's components.
        images: Image handlers that show the maps.
    """

    def __init__(self, controller: DemoController, layout: Layout, images: ImageHandlers) -> None:
        super().__init__(controller, layout)
        self.images = images

    def on_answered(self, unit: str, request: gr.Request) -> Values:
        """Offer the new answer's words, and remove the old map."""
        session = self.session(request)
        written = [
            (i, pair.shown_question)
            for i, pair in enumerate(session.conversation.history)
            if pair.kind.is_generated
        ]
        choices = [
            ("the draft" if session.draft and i == session.draft.index else question[:50], i)
            for i, question in written
        ]
        last = written[-1][0] if written else -1
        return {
            self.layout.answer_choice: gr.update(
                choices=choices, value=last if written else None, visible=len(written) > 1
            ),
            self.layout.spans: self._spans(session, unit, last),
            self.layout.remarks: self._remarks(session, last),
            self.layout.predicted: self._predicted(session),
            self.layout.viewer: self.controller.images.viewer(session),
            self.layout.map_text: self.layout.map_html(""),
            self.layout.opacity: gr.update(visible=False),
        }

    def on_unit(self, unit: str, index: int | None, request: gr.Request) -> str:
        """Offer the sentences or words of the chosen answer."""
        session = self.session(request)
        last = len(session.conversation.history) - 1
        return self._spans(session, unit, last if index is None else int(index))

    def on_span(self, event: gr.EventData, request: gr.Request) -> Values:
        """Show where the model looked for the clicked words."""
        session = self.session(request)
        index, start, end = (int(part) for part in str(event.pick).split("-"))
        text = self.controller.maps.show(session, index, (start, end))
        return self.images.view(session) | {
            self.layout.map_text: self.layout.map_html(text),
            self.layout.opacity: gr.update(visible=bool(session.heat)),
        }

    def _remarks(self, session: Session, index: int) -> str:
        """List the sentences of an answer that contradict something, with the reasons."""
        history = session.conversation.history
        if not 0 <= index < len(history):
            return ""
        pair = history[index]
        remarks = [
            f"“{pair.answer[r['start'] : r['end']]}” {r['text']}."
            for r in pair.payload.get("remarks", ())
        ]
        items = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
        return f'<ul class="xg-remarks">{items}</ul>' if items else ""

    def _predicted(self, session: Session) -> str:
        """List the findings predicted from the images, from the last answer that has them."""
        answerer = self.controller.parts.engine.answerer
        payloads = [pair.payload for pair in session.conversation.history]
        payload = next((p for p in reversed(payloads) if p.get("probabilities")), None)
        if answerer is None or payload is None:
            return ""
        return predicted_html(predicted_rows(payload, answerer.vocabulary))

    def _spans(self, session: Session, unit: str, index: int) -> str:
        spans = answer_spans(session, index, words=unit == "Words")
        if not spans:
            return NO_SPANS_HTML
        text = session.conversation.history[index].answer
        remarks = session.conversation.history[index].payload.get("remarks", ())
        cells = "".join(
            f'<button type="button" data-pick="{index}-{start}-{end}"'
            f"{_doubt_class(start, end, remarks)}>{html.escape(text[start:end])}</button> "
            for start, end in spans
        )
        label = f"{unit} of the answer"
        return f'<div class="xg-words" role="group" aria-label="{label}">{cells}</div>'


def _doubt_class(start: int, end: int, remarks: Sequence[Remark]) -> str:
    """Return the class of a span that overlaps a remark's sentence."""
    doubted = any(r["start"] < end and start < r["end"] for r in remarks)
    return ' class="xg-doubted" title="see the remark below"' if doubted else ""


class SessionHandlers(_Handlers):
    """Handlers for opening, exporting, clearing and closing.

    Args:
        controller: The controller that does the work.
        layout: The page's components.
        images: Image handlers that return the values of an empty page.
        answers: Answer handlers that return the values of the buttons.
    """

    def __init__(
        self,
        controller: DemoController,
        layout: Layout,
        images: ImageHandlers,
        answers: AnswerHandlers,
    ) -> None:
        super().__init__(controller, layout)
        self.images, self.answers = images, answers

    def on_load(self, request: gr.Request) -> None:
        """Open a session."""
        self.session(request)

    def on_unload(self, request: gr.Request) -> None:
        """End the session after the page was closed."""
        self.controller.sessions.end(request.session_hash)

    def exporter(self, kind: Format) -> Callable[..., Any]:
        """Return a handler that exports the report in one format."""

        def on_export(findings: str, impression: str, request: gr.Request) -> dict[str, str]:
            session = self.session(request)
            return self.controller.export(session, findings or "", impression or "", kind)

        return on_export

    def on_clear(self, request: gr.Request) -> Values:
        """Delete the images and the conversation."""
        session, layout = self.session(request), self.layout
        session.clear()
        return {
            **self.images.empty_page(session),
            **self.answers.on_done(),
            layout.question: "",
            layout.download: None,
            layout.upload: None,
            layout.status: status_html("Cleared: the images and the conversation were deleted."),
        }
