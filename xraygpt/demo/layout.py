"""The components of the page and their labels."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import gradio as gr

from xraygpt.answering.wording import PredictedRow
from xraygpt.demo import display
from xraygpt.demo.cine_player import start_script
from xraygpt.demo.controller import DemoController
from xraygpt.demo.decoding import AS_EVALUATED, MAX_BEAMS, MODES, DecodingSettings
from xraygpt.demo.examples import CREDIT, FILMS
from xraygpt.demo.report import MAX_REPORT, NOTICE, SYNTHETIC_WARNING
from xraygpt.models.capabilities import AttentionMaps, supports

NO_SPANS_HTML = '<p class="xg-small">Draft a report to see its sentences here.</p>'
"""Text shown when there are no words to click."""


def asset(name: str) -> str:
    """Return the content of a style or script file of the page."""
    return (resources.files("xraygpt") / "data" / name).read_text("utf-8")


class Layout:
    """The page's components, without events.

    Args:
        controller: Source of the model's facts and the examples.
        add_studies: Adds the components of a second tab for studies; None shows no tabs.
    """

    def __init__(
        self, controller: DemoController, add_studies: Callable[[], None] | None = None
    ) -> None:
        self.controller = controller
        with gr.Blocks(
            title="xraygpt: research use only",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=(600, 600),
        ) as self.blocks:
            self._add_header()
            if add_studies is None:
                self._add_chat_page()
            else:
                with gr.Tabs():
                    with gr.Tab("Images" if controller.images.clips.as_clips else "X-rays"):
                        self._add_chat_page()
                    with gr.Tab("Studies"):
                        add_studies()
            self.download = gr.JSON(visible="hidden", elem_id="xg-payload")
            self.ticket = gr.Number(None, visible="hidden", precision=0)

    def _add_chat_page(self) -> None:
        with gr.Row(elem_classes="xg-columns"):
            with gr.Column(scale=5, min_width=340):
                self._add_viewer()
            with gr.Column(scale=6, min_width=340):
                self._add_draft_buttons()
                self._add_report()
                self._add_chat()
                self._add_maps()
                self._add_exports()
                self._add_decoding()

    def _add_header(self) -> None:
        facts = self.controller.parts.facts
        synthetic = f" {SYNTHETIC_WARNING}" if self.controller.synthetic else ""
        rows = "".join(
            f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>"
            for name, value in {"model": self.controller.name, **facts}.items()
        )
        gr.HTML(
            f'<header class="xg-head"><h1>xraygpt</h1>'
            f'<p class="xg-notice" role="note"><strong>{NOTICE}.</strong> Not for diagnosis.'
            f"{synthetic}</p>"
            f'<details class="xg-card"><summary>{html.escape(self.controller.name)} on '
            f"{html.escape(str(facts['device']))}</summary><dl>{rows}</dl></details></header>"
        )

    def _add_viewer(self) -> None:
        reads_clips = self.controller.images.clips.as_clips
        self.upload = gr.File(
            label="Images and clips: PNG, JPEG, DICOM, MP4, AVI"
            if reads_clips
            else "X-rays: PNG, JPEG, DICOM",
            file_count="multiple",
            height=84 if reads_clips else 64,
            elem_id="xg-upload",
        )
        self.examples = gr.HTML(
            self._example_buttons(),
            js_on_load=asset("demo_pick.js"),
            elem_id="xg-examples",
            visible=bool(self.controller.images.examples),
        )
        self.image_choice = gr.Radio([], label="Images", visible=False, elem_id="xg-which")
        self.viewer = gr.HTML(
            display.viewer_html(None, self.controller.images.hint),
            html_template=asset("demo_viewer.html"),
            js_on_load=asset("demo_viewer.js"),
            elem_id="xg-viewer",
        )
        self.player = gr.HTML("", js_on_load=start_script(), visible=False, elem_id="xg-clip")
        self.facts = gr.HTML(visible=False, elem_id="xg-facts")
        self.frame = gr.Slider(1, 2, 1, step=1, label="Frame", visible=False, elem_id="xg-frame")
        with gr.Row(visible=False, elem_id="xg-window") as self.tools:
            self.level = gr.Slider(0, 1, 0, label="Window level", elem_id="xg-level")
            self.width = gr.Slider(1, 2, 1, label="Window width", elem_id="xg-width")
            with gr.Column(min_width=120, scale=0):
                self.invert = gr.Checkbox(label="Invert", elem_id="xg-invert")
                self.reset_view = gr.Button("Reset view", size="sm")

    def _example_buttons(self) -> str:
        def button(number: int, path: Path, caption: str) -> str:
            pixels = display.thumbnail(display.open_image(path).pixels(), 96)
            text = html.escape(caption)
            return (
                f'<button type="button" data-pick="{number}" title="{text}"><img '
                f'src="{display.data_uri(pixels)}" alt=""><span>{text}</span></button>'
            )

        examples = self.controller.images.examples
        cells = [button(i, path, caption) for i, (path, caption) in enumerate(examples)]
        credit = CREDIT if any(path.parent == FILMS for path, _ in examples) else ""
        return (
            f'<div class="xg-examples" role="group" aria-label="Examples">{"".join(cells)}</div>'
            f'<p class="xg-credit">{credit}</p>'
        )

    def _add_draft_buttons(self) -> None:
        self.warnings = gr.HTML(visible=False, elem_id="xg-doubts")
        with gr.Row():
            self.draft = gr.Button(
                "Draft report", variant="primary", min_width=120, elem_id="xg-draft"
            )
            self.fast = gr.Button(
                "Fast draft", min_width=110, elem_id="xg-fast", visible=self._offers_fast_draft()
            )
            self.stop = gr.Button(
                "Stop", variant="stop", interactive=False, min_width=90, elem_id="xg-stop"
            )
            self.regenerate = gr.Button(
                "Answer again", interactive=False, min_width=110, elem_id="xg-again"
            )
            self.clear = gr.Button("Clear all", min_width=90, elem_id="xg-clear")
        self.status = gr.HTML(status_html(self._fast_draft_note()), elem_id="xg-status")

    def _offers_fast_draft(self) -> bool:
        """Whether the measured decoding takes longer than greedy decoding."""
        generation = self.controller.parts.generation
        return max(generation.candidates, generation.num_beams) > 1

    def _fast_draft_note(self) -> str:
        """Return what a fast draft costs, from the model's measured scores."""
        scores = self.controller.parts.engine.model.abilities.decoding_scores
        full, fast = scores.get(AS_EVALUATED, {}), scores.get("fast draft", {})
        names = [name for name in full if name in fast]
        if not names or not self._offers_fast_draft():
            return ""
        costs = ", ".join(f"{name} {fast[name]:.3f} instead of {full[name]:.3f}" for name in names)
        return f"A fast draft is worse: {costs}."

    def _add_report(self) -> None:
        self.findings = gr.Textbox(
            label="Findings (AI draft: edit it)",
            lines=3,
            max_lines=10,
            max_length=MAX_REPORT,
            elem_id="xg-findings",
        )
        self.impression = gr.Textbox(
            label="Impression (AI draft: edit it)",
            lines=1,
            max_lines=6,
            max_length=MAX_REPORT,
            elem_id="xg-impression",
            visible=self.controller.responder.writes_impression,
        )
        self.remarks = gr.HTML("", elem_id="xg-remarks")
        self.predicted = gr.HTML("", elem_id="xg-predicted")

    def _add_exports(self) -> None:
        with gr.Row():
            self.exports = {
                kind: gr.Button(
                    f"Export {name}", size="sm", min_width=90, elem_id=f"xg-export-{kind}"
                )
                for kind, name in (("md", "Markdown"), ("json", "JSON"), ("pdf", "PDF"))
            }

    def _add_maps(self) -> None:
        shown = supports(self.controller.parts.engine.model, AttentionMaps)
        with gr.Accordion("Where the model looked", elem_id="xg-where", visible=shown):
            with gr.Row():
                self.unit = gr.Radio(
                    ["Sentences", "Words"],
                    value="Sentences",
                    label="Click a sentence or a word of a written answer",
                )
                self.answer_choice = gr.Dropdown(
                    [], label="Answer", visible=False, elem_id="xg-turn"
                )
            self.spans = gr.HTML(
                NO_SPANS_HTML, js_on_load=asset("demo_pick.js"), elem_id="xg-words"
            )
            self.map_text = gr.HTML(self.map_html(""), elem_id="xg-looked")
            self.opacity = gr.Slider(
                0, 100, 70, step=1, label="Opacity of the map (%)", elem_id="xg-opacity",
                visible=False,
            )  # fmt: skip

    @property
    def questions_offered(self) -> list[str]:
        """Questions that the model can answer."""
        answerer = self.controller.parts.engine.answerer
        if answerer is None:
            return []
        # A model of unknown abilities that reads clips may know nothing about chest X-rays.
        any_subject = self.controller.images.clips.as_clips and not answerer.abilities.findings
        return [] if any_subject else answerer.example_questions()

    def _add_chat(self) -> None:
        with gr.Row():
            self.question = gr.Textbox(
                show_label=False,
                placeholder="Ask about the image",
                lines=1,
                max_lines=4,
                scale=5,
                elem_id="xg-question",
            )
            self.ask = gr.Button("Ask", variant="primary", scale=1, min_width=80, elem_id="xg-ask")
        cells = "".join(
            f'<button type="button" data-pick="{i}">{html.escape(q)}</button>'
            for i, q in enumerate(self.questions_offered)
        )
        self.questions = gr.HTML(
            f'<div class="xg-questions" role="group" aria-label="Example questions">{cells}</div>',
            js_on_load=asset("demo_pick.js"),
            elem_id="xg-questions",
        )
        self.chat = gr.Chatbot(
            label="Conversation (AI output, not verified)",
            height=190,
            render_markdown=False,
            feedback_options=None,
            buttons=[],
            elem_id="xg-chat",
        )

    def _add_decoding(self) -> None:
        evaluated = self.controller.parts.generation
        half_context = self.controller.parts.engine.model.context_len // 2
        start = DecodingSettings(max_new_tokens=evaluated.max_new_tokens)
        with gr.Accordion("Decoding", open=False, elem_id="xg-decoding"):
            self.settings = [
                gr.Radio(list(MODES), value=start.mode, label="Mode", elem_id="xg-mode"),
                gr.Slider(0.1, 2, start.temperature, step=0.1, label="Temperature (sampling)"),
                gr.Slider(0.05, 1, start.top_p, step=0.05, label="Top-p (sampling)"),
                gr.Slider(1, 2, start.repetition_penalty, step=0.05, label="Repetition penalty"),
                gr.Slider(2, MAX_BEAMS, start.num_beams, step=1, label="Beams (beam search)"),
                gr.Slider(
                    1,
                    max(min(512, half_context), start.max_new_tokens),
                    start.max_new_tokens,
                    step=1,
                    label="Maximum length of an answer (tokens)",
                ),
                gr.Number(
                    start.seed, precision=0, minimum=0, label="Seed (sampling)", elem_id="xg-seed"
                ),
            ]

    def map_html(self, text: str) -> str:
        """Return text about the maps with a colour legend; an empty text hides both."""
        count = self.controller.attention.num_references
        note = self.controller.parts.engine.model.abilities.map_note
        baseline = "average of the full answer"
        baseline += f" and {count} training images" if count else ""
        legend = (
            f'<div class="xg-legend"><span>{baseline}</span><i aria-hidden="true"></i>'
            "<span>most attention</span></div>"
        )
        return (
            f'<div role="status">{f"<p>{html.escape(text)}</p>{legend}" if text else ""}</div>'
            '<p class="xg-small">Attention of the selected words, scaled to its maximum. It '
            f"explains the model and is not evidence of a finding. {html.escape(note)}</p>"
        )


def status_html(text: str) -> str:
    """Return the HTML of the status line."""
    return f'<p role="status" class="xg-status">{html.escape(text)}</p>'


def predicted_html(rows: Sequence[PredictedRow]) -> str:
    """Return the HTML of the list of findings predicted from the images."""
    present = [row for row in rows if row.present]
    cells = "".join(
        f"<li><b>{html.escape(row.name)}</b>: {row.likelihood}, {row.probability}</li>"
        for row in present
    )
    others = ", ".join(f"{row.name} {row.probability}" for row in rows if not row.present)
    listed = (
        f"<ul>{cells}</ul>" if present else "<p>None of its findings reaches its threshold.</p>"
    )
    return (
        '<div class="xg-predicted" role="group" aria-label="Findings predicted from the image">'
        f"<h2>What the model finds in the image</h2>{listed}"
        f"<details><summary>{len(rows) - len(present)} unlikely findings</summary>"
        f"<p>{html.escape(others)}</p></details></div>"
    )
