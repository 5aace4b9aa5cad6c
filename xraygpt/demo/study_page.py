"""The part of the page on which studies are analysed, alone or as a tab beside the chat."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from xraygpt.common.errors import InputError
from xraygpt.demo.cine_player import player_html, start_script
from xraygpt.demo.layout import asset, status_html
from xraygpt.demo.page_errors import show_errors
from xraygpt.demo.sessions import PageSession
from xraygpt.demo.study_desk import StudyDesk
from xraygpt.demo.study_view import details_html, message_html, summary_html, update_html
from xraygpt.studies.base import Format
from xraygpt.studies.report import NOTICE, StudyReport

Values = dict[Any, Any]
_HINT = (
    "Drop a zip file with the folder of a study, or its files (DICOM or NIfTI), on the field above."
)
_TITLES: dict[Format, str] = {"html": "HTML", "md": "Markdown", "json": "JSON", "pdf": "PDF"}
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_MAX_SHOWN = 5  # messages about uploads


class StudyTab:
    """Components for studies and their events.

    Args:
        desk: What does the work.
    """

    def __init__(self, desk: StudyDesk) -> None:
        self.desk = desk

    def add(self) -> None:
        """Add the components to the current `gr.Blocks`, and connect them with their handlers."""
        self._add_components()
        self._results = [self.player, self.summary, self.details, self.exports]
        self._connect()

    def _add_components(self) -> None:
        self.upload = gr.File(
            label="Study: zip, DICOM, NIfTI",
            file_count="multiple",
            height=84,
            elem_id="xg-study-upload",
            elem_classes="xg-upload",
        )
        with gr.Row(elem_classes="xg-study-buttons"):
            self.analyse = gr.Button(
                "Analyse", variant="primary", interactive=False, min_width=110,
                elem_id="xg-study-analyse",
            )  # fmt: skip
            self.stop = gr.Button(
                "Stop", variant="stop", interactive=False, min_width=90, elem_id="xg-study-stop"
            )
            self.clear = gr.Button("Clear", min_width=90, elem_id="xg-study-clear")
        self.status = gr.HTML(status_html(_HINT), elem_id="xg-study-status")
        with gr.Row(visible=False, elem_id="xg-study-exports") as self.exports:
            self.buttons: dict[Format, gr.Button] = {
                kind: gr.Button(
                    f"Export {_TITLES[kind]}", size="sm", min_width=100,
                    elem_id=f"xg-study-export-{kind}",
                )
                for kind in self.desk.formats
            }  # fmt: skip
            self.everything = gr.Button(
                "All files (zip)", size="sm", min_width=100, elem_id="xg-study-export-all"
            )
        with gr.Row(elem_classes="xg-columns"):
            with gr.Column(scale=5, min_width=320):
                self.player = gr.HTML(
                    "", js_on_load=start_script(), visible=False, elem_id="xg-study-player"
                )
            with gr.Column(scale=6, min_width=320):
                self.summary = gr.HTML("", visible=False, elem_id="xg-study-summary")
        self.details = gr.HTML("", visible=False, elem_id="xg-study-details")
        self.download = gr.JSON(visible="hidden", elem_id="xg-study-payload")

    def _connect(self) -> None:
        self.upload.upload(
            show_errors(self.on_upload),
            self.upload,
            [self.upload, self.status, self.analyse, *self._results],
            **_PRIVATE,
        )
        begun = self.analyse.click(
            show_errors(self.on_begin), None, [*self._controls(), self.status], **_PRIVATE
        )
        analysed = begun.success(
            show_errors(self.on_analyse),
            None,
            [self.status, *self._results],
            concurrency_id="study",
            concurrency_limit=1,
            **_PRIVATE,
        )
        analysed.failure(
            lambda: message_html(["Not analysed."]), None, self.status, queue=False, **_PRIVATE
        )
        for finished in (analysed.then, analysed.failure):  # `then` does not run after a failure
            finished(self.on_done, None, self._controls(), queue=False, **_PRIVATE)
        self.stop.click(show_errors(self.on_stop), None, self.stop, queue=False, **_PRIVATE)
        self.clear.click(
            show_errors(self.on_clear),
            None,
            [self.upload, self.status, *self._controls(), *self._results, self.download],
            **_PRIVATE,
        )
        handlers = {button: self._exporter(kind) for kind, button in self.buttons.items()}
        for button, handler in {**handlers, self.everything: self.on_export_all}.items():
            button.click(show_errors(handler), None, self.download, **_PRIVATE).success(
                None, self.download, None, js=asset("demo_save.js")
            )

    def _controls(self) -> list[Any]:
        return [self.analyse, self.stop]

    def _session(self, request: gr.Request) -> PageSession:
        session: PageSession = self.desk.sessions.get(request.session_hash)
        return session

    def on_upload(self, files: list[str] | None, request: gr.Request) -> Values:
        """Add files to the study; files that cannot be added are listed on the page."""
        session = self._session(request)
        try:
            messages = self.desk.add_uploads(session, files or [])
        except InputError as error:
            # The file list must be emptied, or the next upload sends it again.
            return {self.upload: None, self.status: message_html([str(error)])}
        status = status_html(self.desk.describe(session)) if session.study.num_files else ""
        if len(messages) > _MAX_SHOWN:
            messages = [*messages[:_MAX_SHOWN], f"… and {len(messages) - _MAX_SHOWN} more."]
        return {
            self.upload: None,
            self.status: status + (message_html(messages) if messages else ""),
            self.analyse: gr.update(interactive=session.study.num_files > 0),
            **self._hidden(),
        }

    def on_begin(self, request: gr.Request) -> Values:
        """Switch from Analyse to Stop."""
        self._session(request).study.allow()
        return {
            self.analyse: gr.update(interactive=False),
            self.stop: gr.update(interactive=True),
            self.status: status_html("Waiting for another visitor's analysis …"),
        }

    def on_analyse(self, request: gr.Request) -> Iterator[Values]:
        """Analyse the study, with its progress."""
        for update in self.desk.analyse(self._session(request)):
            shown = {} if update.report is None else self._shown(update.report)
            yield {self.status: update_html(update), **shown}

    def on_done(self) -> Values:
        """Switch from Stop to Analyse."""
        return {
            self.analyse: gr.update(interactive=True),
            self.stop: gr.update(interactive=False),
        }

    def on_stop(self, request: gr.Request) -> Any:
        """Stop the analysis at its next step."""
        self._session(request).study.stop()
        return gr.update(interactive=False)

    def on_clear(self, request: gr.Request) -> Values:
        """Delete the study and its results."""
        self._session(request).study.clear()
        return {
            **self.on_done(),
            **self._hidden(),
            self.upload: None,
            self.analyse: gr.update(interactive=False),
            self.status: status_html(f"Cleared: the study was deleted. {_HINT}"),
            self.download: None,
        }

    def on_export_all(self, request: gr.Request) -> dict[str, str]:
        """Export everything in a zip file."""
        return self.desk.export_all(self._session(request))

    def _exporter(self, kind: Format) -> Callable[..., Any]:
        def on_export(request: gr.Request) -> dict[str, str]:
            return self.desk.export(self._session(request), kind)

        return on_export

    def _shown(self, report: StudyReport) -> Values:
        player = player_html(report.clips)
        return {
            self.player: gr.update(value=player, visible=bool(player)),
            self.summary: gr.update(value=summary_html(report), visible=True),
            self.details: gr.update(value=details_html(report), visible=True),
            self.exports: gr.update(visible=True),
        }

    def _hidden(self) -> Values:
        texts = (self.player, self.summary, self.details)
        hidden = {part: gr.update(value="", visible=False) for part in texts}
        return {**hidden, self.exports: gr.update(visible=False)}


class StudyPage:
    """A page for studies alone, without a chat model.

    Args:
        desk: What does the work.

    Attributes:
        blocks: The Gradio application.
    """

    def __init__(self, desk: StudyDesk) -> None:
        self.desk = desk
        with gr.Blocks(
            title="xraygpt: research use only",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=(600, 600),
        ) as self.blocks:
            gr.HTML(
                '<header class="xg-head"><h1>xraygpt</h1><p class="xg-notice" role="note">'
                f"<strong>{html.escape(NOTICE)}</strong></p>"
                f"<p>{html.escape(desk.name)}</p></header>"
            )
            StudyTab(desk).add()
            self.blocks.load(show_errors(self._on_load), None, None, api_visibility="private")
            self.blocks.unload(self._on_unload)

    def _on_load(self, request: gr.Request) -> None:
        self.desk.sessions.get(request.session_hash)

    def _on_unload(self, request: gr.Request) -> None:
        self.desk.sessions.end(request.session_hash)
