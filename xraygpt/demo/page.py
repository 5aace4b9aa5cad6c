"""The page with its components, its handlers, and the events that connect them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import gradio as gr

from xraygpt.demo.controller import DemoController
from xraygpt.demo.handlers import AnswerHandlers, ImageHandlers, MapHandlers, SessionHandlers
from xraygpt.demo.layout import Layout, asset, status_html
from xraygpt.demo.page_errors import show_errors
from xraygpt.demo.report import Format
from xraygpt.demo.study_desk import StudyDesk
from xraygpt.demo.study_page import StudyTab

_ON_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Name of the queue for all events that run the model."""
_QUICK: dict[str, Any] = {
    "concurrency_id": "view",  # decoding a large file occupies a core for a second
    "concurrency_limit": 2,
    "show_progress": "hidden",
    "api_visibility": "private",
}


class Page:
    """The page of a demo.

    Args:
        controller: The controller that does the work.
        desk: An analysis of studies for a second tab; None shows no tabs.

    Attributes:
        blocks: The Gradio application.
    """

    def __init__(self, controller: DemoController, desk: StudyDesk | None = None) -> None:
        add_studies = None if desk is None else StudyTab(desk).add
        self.layout = Layout(controller, add_studies)
        self.images = ImageHandlers(controller, self.layout)
        self.answers = AnswerHandlers(controller, self.layout)
        self.maps = MapHandlers(controller, self.layout, self.images)
        self.sessions = SessionHandlers(controller, self.layout, self.images, self.answers)
        self.blocks = self.layout.blocks
        layout = self.layout
        self._view = [
            layout.image_choice, layout.viewer, layout.player, layout.warnings, layout.facts,
            layout.frame, layout.tools, layout.level, layout.width, layout.invert, layout.map_text,
        ]  # fmt: skip
        with self.blocks:
            self._connect_images()
            self._connect_viewer()
            self._connect_answers()
            self._connect_maps()
            self._connect_session()

    def _connect_images(self) -> None:
        layout, images = self.layout, self.images
        prefill: dict[str, Any] = {
            "fn": show_errors(images.on_prefill),
            "outputs": [layout.status],
            "show_progress": "hidden",
            "api_visibility": "private",
            **_ON_MODEL,
        }
        layout.upload.upload(
            show_errors(images.on_upload),
            layout.upload,
            [layout.upload, *self._view],
            api_name="upload",
        ).success(**prefill)
        texts = [
            layout.findings, layout.impression, layout.chat, layout.answer_choice, layout.spans,
            layout.remarks, layout.predicted,
        ]  # fmt: skip
        layout.examples.click(
            show_errors(images.on_example), None, [*self._view, *texts], api_visibility="private"
        ).success(**prefill)
        layout.image_choice.input(
            show_errors(images.on_select), layout.image_choice, self._view, **_QUICK
        )
        layout.frame.release(
            show_errors(images.on_frame), layout.frame, self._view, **_QUICK
        ).success(**prefill)

    def _connect_viewer(self) -> None:
        layout, images = self.layout, self.images
        controls: list[Any] = [layout.level, layout.width, layout.invert]
        for control in controls:
            control.input(
                show_errors(images.on_window),
                controls,
                layout.viewer,
                trigger_mode="always_last",
                **_QUICK,
            )
        layout.reset_view.click(show_errors(images.on_reset_view), None, self._view, **_QUICK)
        layout.opacity.input(None, layout.opacity, None, js=asset("demo_opacity.js"))

    def _connect_answers(self) -> None:
        layout, answers = self.layout, self.answers
        unqueued: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        self._connect_answer([layout.draft.click], answers.on_draft, "draft")
        self._connect_answer([layout.fast.click], answers.on_fast_draft, "fast_draft")
        self._connect_answer([layout.ask.click, layout.question.submit], answers.on_ask, "ask")
        self._connect_answer([layout.regenerate.click], answers.on_regenerate, "regenerate")
        layout.stop.click(
            show_errors(answers.on_stop), None, layout.stop, api_name="stop", **unqueued
        )
        layout.questions.click(
            show_errors(answers.on_example_question),
            None,
            layout.question,
            api_visibility="private",
            **unqueued,
        )

    def _connect_answer(
        self, triggers: list[Any], handler: Callable[..., Any], api_name: str
    ) -> None:
        """Disable the buttons, answer, enable them again, and offer the answer's words."""
        layout, answers = self.layout, self.answers
        unqueued: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        begun = gr.on(
            triggers,
            show_errors(answers.on_begin),
            None,
            [*answers.buttons, layout.status, layout.ticket],
            api_visibility="private",
            show_progress="hidden",  # queued, because errors outside the queue are not shown
        )
        answered = begun.success(
            show_errors(handler),
            {layout.question, layout.ticket, *layout.settings},
            [layout.findings, layout.impression, layout.chat, layout.status, layout.question],
            api_name=api_name,
            show_progress="minimal",
            show_progress_on=layout.status,
            **_ON_MODEL,
        )
        answered.failure(lambda: status_html("Not answered."), None, layout.status, **unqueued)
        for finished in (answered.then, answered.failure):  # `then` does not run after a failure
            finished(
                answers.on_done, None, answers.buttons, api_visibility="private", **unqueued
            ).then(
                show_errors(self.maps.on_answered),
                layout.unit,
                [
                    layout.answer_choice,
                    layout.spans,
                    layout.remarks,
                    layout.predicted,
                    layout.viewer,
                    layout.map_text,
                    layout.opacity,
                ],
                api_visibility="private",
                **unqueued,
            )

    def _connect_maps(self) -> None:
        layout, maps = self.layout, self.maps
        layout.spans.click(
            show_errors(maps.on_span),
            None,
            [*self._view, layout.opacity],
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=layout.map_text,
            **_ON_MODEL,
        ).success(None, None, None, js=asset("demo_show.js"))
        for control in (layout.unit, layout.answer_choice):
            control.input(
                show_errors(maps.on_unit),
                [layout.unit, layout.answer_choice],
                layout.spans,
                api_visibility="private",
            )

    def _connect_session(self) -> None:
        layout, sessions = self.layout, self.sessions
        for kind, button in layout.exports.items():
            button.click(
                show_errors(sessions.exporter(cast("Format", kind))),
                [layout.findings, layout.impression],
                layout.download,
                api_name=f"export_{kind}",
                show_progress="hidden",
            ).success(None, layout.download, None, js=asset("demo_save.js"))
        gr.on(
            [layout.clear.click, layout.chat.clear],
            show_errors(sessions.on_clear),
            None,
            [
                *self._view, *self.answers.buttons, layout.findings, layout.impression,
                layout.chat, layout.status, layout.answer_choice, layout.spans, layout.remarks,
                layout.predicted, layout.question, layout.download, layout.upload,
            ],
            api_name="clear",
        )  # fmt: skip
        self.blocks.load(show_errors(sessions.on_load), None, None, api_visibility="private")
        self.blocks.unload(sessions.on_unload)
