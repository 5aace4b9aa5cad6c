"""Made-up predictions about made-up images, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xraygpt.boxes.spelling import write_boxes
from xraygpt.tasks.base import Prediction


def predict(
    name: str, text: str, *, reference: str = "", payload: Any = None, **meta: Any
) -> Prediction:
    """A prediction for one sample, which is its own study."""
    return Prediction(name, name, "Q?", text, reference, 0, meta, payload or {})


def pointing(
    name: str, phrase: str, boxes: Sequence[Any], answer: Sequence[Any], **meta: Any
) -> Prediction:
    """A question about a phrase with these true boxes, answered with others."""
    text = f"It is at {write_boxes(answer, 'thousand')}." if answer else "It is not seen."
    labelled = [{"label": phrase, "box": list(box)} for box in boxes]
    return predict(name, text, phrase=phrase, boxes=labelled, **meta)
