"""A study's report and the state of its analysis as HTML for the page."""

from __future__ import annotations

import base64
import html
from importlib import resources

from xraygpt.demo.display import data_uri
from xraygpt.demo.study_desk import StudyUpdate
from xraygpt.studies.report import StudyReport


def summary_html(report: StudyReport) -> str:
    """Return findings, measurements and warnings."""
    return _render("demo_study_summary.html", report)


def details_html(report: StudyReport) -> str:
    """Return figures, tables, notices, references and settings; videos only without clips."""
    return _render("demo_study_details.html", report)


def update_html(update: StudyUpdate) -> str:
    """Return the status line of an analysis with a progress bar."""
    if update.failed:
        return message_html([update.status])
    bar = ""
    if update.report is None:
        value = "" if update.fraction is None else f' value="{update.fraction:.3f}"'
        bar = f'<progress max="1"{value} aria-label="Progress of this step"></progress>'
    return f'<p role="status" class="xg-status">{html.escape(update.status)}</p>{bar}'


def message_html(messages: list[str]) -> str:
    """Return messages about the user's files, one paragraph each."""
    lines = "".join(f"<p>{html.escape(text)}</p>" for text in messages)
    return f'<div role="alert" class="xg-alert">{lines}</div>'


def _render(name: str, report: StudyReport) -> str:
    import jinja2

    source = (resources.files("xraygpt") / "data" / name).read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    images = {figure.name: data_uri(figure.pixels) for figure in report.figures}
    videos = {
        video.name: f"data:video/mp4;base64,{base64.b64encode(video.content).decode()}"
        for video in report.videos
    }
    template = environment.from_string(source)
    return template.render(report=report, banner=report.banner(), images=images, videos=videos)
