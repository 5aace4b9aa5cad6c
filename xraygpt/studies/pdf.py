"""PDF files with the notice on every page; shared by all exports."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np

from xraygpt.common.errors import InputError

MARGIN = 56
"""Left and right margin in points."""


class PdfDocument:
    """Collects the parts of a PDF file, top to bottom.

    Args:
        notice: Sentence at the top, at the bottom and across every page.

    Raises:
        InputError: reportlab is not installed.
    """

    def __init__(self, notice: str) -> None:
        try:
            from reportlab.lib.styles import ParagraphStyle
        except ImportError:
            raise InputError(
                "PDF files need reportlab: type pip install -c constraints.txt reportlab"
            ) from None
        self.notice = notice
        self._story: list[Any] = []
        normal, bold = load_fonts()
        self.body = ParagraphStyle("body", fontName=normal, fontSize=9.5, leading=14)
        self.small = ParagraphStyle(
            "small", parent=self.body, fontSize=7.5, leading=10, splitLongWords=True
        )
        self.head = ParagraphStyle("head", fontName=bold, fontSize=11, leading=16, spaceBefore=6)

    def heading(self, text: str) -> None:
        """Add a heading."""
        self._story.append(self._paragraph(text, self.head))

    def text(self, text: str, small: bool = False) -> None:
        """Add a paragraph."""
        self._story.append(self._paragraph(text, self.small if small else self.body))

    def table(self, rows: Sequence[Sequence[str]], widths: Sequence[float]) -> None:
        """Add a table of small text; `widths` are in points."""
        from reportlab.platypus import Table

        cells = [[self._paragraph(cell, self.small) for cell in row] for row in rows]
        padding = ("TOPPADDING", (0, 0), (-1, -1), 0), ("BOTTOMPADDING", (0, 0), (-1, -1), 1)
        top = ("VALIGN", (0, 0), (-1, -1), "TOP")
        lines = [("LINEBELOW", (0, 0), (-1, 0), 0.4, "#888888")]
        style: Any = [*padding, top, *lines]
        self._story.append(Table(cells, colWidths=list(widths), hAlign="LEFT", style=style))

    def picture(self, pixels: np.ndarray, caption: str, width: float) -> None:
        """Add a picture of at most `width` points, kept together with its caption.

        Args:
            pixels: (H, W) or (H, W, 3) uint8.
            caption: Text below it.
            width: In points.
        """
        from reportlab.platypus import Image, KeepTogether

        height = min(pixels.shape[0] / pixels.shape[1] * width, 600.0)
        width = min(width, pixels.shape[1] / pixels.shape[0] * height)
        image = Image(encode_png(pixels), width, height)
        image.hAlign = "LEFT"
        self._story.append(KeepTogether([image, self._paragraph(caption, self.small)]))

    def build(self) -> bytes:
        """Return the content of the file."""
        from reportlab.lib.pagesizes import A4
        from reportlab.platypus import SimpleDocTemplate

        buffer = BytesIO()
        document = SimpleDocTemplate(
            buffer, pagesize=A4, title=self.notice, author="xraygpt", subject=self.notice,
            leftMargin=MARGIN, rightMargin=MARGIN, topMargin=52, bottomMargin=48,
        )  # fmt: skip
        draw = partial(_draw_notice, self.notice)
        document.build(self._story, onFirstPage=draw, onLaterPages=draw)
        return buffer.getvalue()

    def _paragraph(self, text: str, style: Any) -> Any:
        from reportlab.platypus import Paragraph

        return Paragraph(html.escape(text).replace("\n", "<br/>"), style)


def load_fonts() -> tuple[str, str]:
    """Return the names of matplotlib's normal and bold fonts with more than Latin letters."""
    from matplotlib import font_manager
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    for name, weight in (("DejaVu", "normal"), ("DejaVu-Bold", "bold")):
        if name not in pdfmetrics.getRegisteredFontNames():
            properties = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
            pdfmetrics.registerFont(TTFont(name, font_manager.findfont(properties)))
    return "DejaVu", "DejaVu-Bold"


def _draw_notice(notice: str, canvas: Any, document: Any) -> None:
    normal, bold = load_fonts()
    width, height = document.pagesize
    canvas.saveState()
    canvas.setFont(bold, 9)
    canvas.setFillGray(0.2)
    canvas.drawString(MARGIN, height - 40, notice)
    canvas.drawRightString(width - MARGIN, 34, f"{notice} · page {document.page}")
    canvas.setFont(normal, min(34, 1500 / len(notice)))
    canvas.setFillGray(0.5, alpha=0.16)
    canvas.translate(width / 2, height / 2)
    canvas.rotate(50)
    canvas.drawCentredString(0, 0, notice)
    canvas.restoreState()


def encode_png(pixels: np.ndarray) -> BytesIO:
    """Encode (H, W) or (H, W, 3) uint8 pixels, and return the file's content from its start."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
