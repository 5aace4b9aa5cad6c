"""The components of the page and their labels."""

from __future__ import annotations

import html
from importlib import resources
from pathlib import Path

import gradio as gr

from xraygpt.demo import display
from xraygpt.demo.controller import DemoController
from xraygpt.demo.decoding import AS_EVALUATED, MAX_BEAMS, MODES, DecodingSettings
from xraygpt.demo.report import MAX_REPORT, NOTICE, SYNTHETIC_WARNING

QUESTIONS = (
    "Is there a pleural effusion, and on which side?",
    "Do you see a pneumothorax?",
    "How large is the heart?",
    "Are the lungs clear?",
    "Which tubes, lines or devices are there?",
    "Is any bone broken?",
    "Is there a nodule or a mass, and where?",
    "What is normal in this image?",
    "What should a reader check first?",
)

NO_SPANS_HTML = '<p class="xg-small">There is no answer yet.</p>'
"""Text shown when there are no words to click."""


def asset(name: str) -> str:
    """Return the content of a style or script file of the page."""
    return (resources.files("xraygpt") / "data" / name).read_text("utf-8")


class Layout:
    """The page's components, without events.

    Args:
        controller: Source of the model's facts and the examples.
    """

    def __init__(self, controller: DemoController) -> None:
        self.controller = controller
        with gr.Blocks(
            title="xraygpt: research use only",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=(600, 600),
        ) as self.blocks:
            self._add_header()
            with gr.Row(elem_classes="xg-columns"):
                with gr.Column(scale=5, min_width=340):
                    self._add_viewer()
                with gr.Column(scale=6, min_width=340):
                    self._add_report()
                    self._add_maps()
                    self._add_chat()
            self.download = gr.JSON(visible="hidden", elem_id="xg-payload")
            self.ticket = gr.Number(None, visible="hidden", precision=0)

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
        self.upload = gr.File(
            label="X-rays: PNG, JPEG, DICOM",
            file_count="multiple",
            height=96,
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
            display.viewer_html(None, ""),
            html_template=asset("demo_viewer.html"),
            js_on_load=asset("demo_viewer.js"),
            elem_id="xg-viewer",
        )
        self.warnings = gr.HTML(visible=False, elem_id="xg-doubts")
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
        return f'<div class="xg-examples" role="group" aria-label="Examples">{"".join(cells)}</div>'

    def _add_report(self) -> None:
        with gr.Row():
            self.draft = gr.Button(
                "Draft report", variant="primary", min_width=130, elem_id="xg-draft"
            )
            self.stop = gr.Button(
                "Stop", variant="stop", interactive=False, min_width=130, elem_id="xg-stop"
            )
            self.regenerate = gr.Button(
                "Regenerate", interactive=False, min_width=130, elem_id="xg-again"
            )
            self.clear = gr.Button("Clear all", min_width=130, elem_id="xg-clear")
        self.status = gr.HTML(status_html(""), elem_id="xg-status")
        self.findings = gr.Textbox(
            label="Findings (AI draft: edit it)",
            lines=4,
            max_lines=14,
            max_length=MAX_REPORT,
            elem_id="xg-findings",
        )
        self.impression = gr.Textbox(
            label="Impression (AI draft: edit it)",
            lines=2,
            max_lines=8,
            max_length=MAX_REPORT,
            elem_id="xg-impression",
        )
        with gr.Row():
            self.exports = {
                kind: gr.Button(
                    f"Export {name}", size="sm", min_width=90, elem_id=f"xg-export-{kind}"
                )
                for kind, name in (("md", "Markdown"), ("json", "JSON"), ("pdf", "PDF"))
            }

    def _add_maps(self) -> None:
        with gr.Column(elem_id="xg-where"):
            with gr.Row():
                self.unit = gr.Radio(
                    ["Sentences", "Words"],
                    value="Sentences",
                    label="Where the model looked: click a sentence or a word",
                )
                self.answer_choice = gr.Dropdown(
                    [], label="Answer", visible=False, elem_id="xg-turn"
                )
            self.spans = gr.HTML(
                NO_SPANS_HTML, js_on_load=asset("demo_pick.js"), elem_id="xg-words"
            )
            self.map_text = gr.HTML(self.map_html(""), elem_id="xg-looked")
            self.opacity = gr.Slider(
                0, 100, 70, step=1, label="Opacity of the map (%)", elem_id="xg-opacity"
            )

    def _add_chat(self) -> None:
        self.chat = gr.Chatbot(
            label="Conversation (AI output, not verified)",
            height=300,
            render_markdown=False,
            feedback_options=None,
            buttons=[],
            elem_id="xg-chat",
        )
        with gr.Row():
            self.question = gr.Textbox(
                label="Question", lines=1, max_lines=4, scale=5, elem_id="xg-question"
            )
            self.ask = gr.Button("Ask", variant="primary", scale=1, min_width=80, elem_id="xg-ask")
        cells = "".join(
            f'<button type="button" data-pick="{i}">{html.escape(q)}</button>'
            for i, q in enumerate(QUESTIONS)
        )
        self.questions = gr.HTML(
            f'<div class="xg-questions" role="group" aria-label="Example questions">{cells}</div>',
            js_on_load=asset("demo_pick.js"),
            elem_id="xg-questions",
        )
        self._add_decoding()

    def _add_decoding(self) -> None:
        evaluated = self.controller.parts.generation
        modes = list(MODES)
        if evaluated != DecodingSettings().to_generation(evaluated):
            modes.append(AS_EVALUATED)
        half_context = self.controller.parts.engine.model.context_len // 2
        start = DecodingSettings(max_new_tokens=evaluated.max_new_tokens)
        with gr.Accordion("Decoding", open=False, elem_id="xg-decoding"):
            self.settings = [
                gr.Radio(modes, value=start.mode, label="Mode", elem_id="xg-mode"),
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
        baseline = "average of the full answer"
        baseline += f" and {count} training images" if count else ""
        legend = (
            f'<div class="xg-legend"><span>{baseline}</span><i aria-hidden="true"></i>'
            "<span>most attention</span></div>"
        )
        return (
            f'<div role="status">{f"<p>{html.escape(text)}</p>{legend}" if text else ""}</div>'
            '<p class="xg-small">Attention of the selected words, scaled to its maximum. It '
            "explains the model and is not evidence of a finding.</p>"
        )


def status_html(text: str) -> str:
    """Return the HTML of the status line."""
    return f'<p role="status" class="xg-status">{html.escape(text)}</p>'
