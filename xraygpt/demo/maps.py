"""Attention maps on the page: where the model looked for selected words."""

from __future__ import annotations

import re

import numpy as np

from xraygpt.conversation.attention import AttentionMapper, ImageAttention, heat_to_image
from xraygpt.demo.sessions import ImageKey, Session
from xraygpt.processors.image import Fit
from xraygpt.processors.text import sentence_spans

MAP_SIDE = 512
"""Maximum side of a map, in pixels."""
MIN_SHARE = 0.02
"""Minimum share of the words' attention that must go to images for a map to be shown."""
_MAX_QUOTE = 60
Span = tuple[int, int]
"""Range of characters in an answer."""


class MapViewer:
    """Computes maps for words of an answer and shows them in the viewer.

    Args:
        attention: Mapper that computes the maps.
        fit: How the image processor makes an image square.
    """

    def __init__(self, attention: AttentionMapper, fit: Fit) -> None:
        self.attention, self.fit = attention, fit

    def show(self, session: Session, index: int, span: Span) -> str:
        """Show where the model looked for a span of an answer.

        Args:
            session: The session; its selected image changes if the model has not read that image.
            index: Index of the answer in the history.
            span: Range of characters.

        Returns:
            Text about the maps.
        """
        maps = self.attention.maps(session.conversation, *span, index=index)
        text = session.conversation.history[index].answer[slice(*span)]
        quote = text if len(text) < _MAX_QUOTE else f"{text[: _MAX_QUOTE - 3]}…"
        if maps[0].images_share < MIN_SHARE:
            session.heat = {}
            return (
                f"“{quote}”: no map, because only {maps[0].images_share:.1%} of the attention "
                "went to images. These words follow from the text, not from the image."
            )
        keys = session.model_images[: len(maps)]
        highest = max(float(result.heat.max()) for result in maps)
        session.heat = {
            key: self._to_pixels(session, key, result, highest)
            for key, result in zip(keys, maps, strict=True)
        }
        if (session.selected, session.require_image().model_frame) not in keys:
            best = max(range(len(maps)), key=lambda i: float(maps[i].heat.sum()))
            session.selected, frame = keys[best]
            session.images[session.selected].show_frame(frame or 0)
        parts = [f"“{quote}”: {maps[0].images_share:.0%} of the attention went to images."]
        if len(maps) > 1:
            parts += [
                f"{_image_name(session, key)}: {result.image_share:.0%}."
                for key, result in zip(keys, maps, strict=True)
            ]
        if not highest:
            parts.append("No image region is above the average.")
        return " ".join(parts)

    def _to_pixels(
        self, session: Session, key: ImageKey, result: ImageAttention, highest: float
    ) -> np.ndarray:
        rows, columns = session.images[key[0]].size
        scale = min(1.0, MAP_SIDE / max(rows, columns))
        heat = heat_to_image(
            result.heat,
            self.fit,
            max(round(rows * scale), 1),
            max(round(columns * scale), 1),
        )
        return heat / highest if highest else heat


def answer_spans(session: Session, index: int, *, words: bool) -> list[Span]:
    """Return the ranges of an answer's sentences or words; empty if there is no such answer."""
    history = session.conversation.history
    if not 0 <= index < len(history):
        return []
    text = history[index].answer
    if words:
        return [m.span() for m in re.finditer(r"[^\s.,;:!?]+", text)]
    spans = []
    for start, end in sentence_spans(text):
        heading = re.match(r"(?i)(findings|impression):\s+", text[start:end])
        spans.append((start + (heading.end() if heading else 0), end))
    return [s for s in spans if s[0] < s[1]]


def _image_name(session: Session, key: ImageKey) -> str:
    index, frame = key
    name = f"Image {index + 1}"
    if frame is None or session.images[index].num_frames == 1:
        return name
    return f"{name}, frame {frame + 1}"
