"""A made-up short-axis stack (SYNTHETIC): round cavities and rings with known sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xraygpt.cardiac.stack import Stack
from xraygpt.segmentation.labels import LV, MYOCARDIUM, RV

SPACING, GAP, SIZE = 1.0, 10.0, 96  # mm, mm, pixels
CENTRE = (48, 48)


def ring(cavity: float, wall: float, right: bool = True) -> np.ndarray:
    """A slice with a round cavity of some radius in mm; the right ventricle lies at columns < 17.

    Columns run to the patient's left and rows to the back, so the septum is at the image's left and
    the anterior wall at the top.
    """
    rows, columns = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(rows - CENTRE[0], columns - CENTRE[1])
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[distance <= cavity + wall] = MYOCARDIUM
    labels[distance <= cavity] = LV
    if right:
        labels[40:57, 4:17] = RV
    return labels


def stack_of(labels: np.ndarray, **settings: object) -> Stack:
    """A stack (T, S, H, W) with its labels; the base is at the last slice, towards the head."""
    origins = np.array([[0.0, 0.0, GAP * i] for i in range(labels.shape[1])])
    stack = Stack(
        "sax", "SAX", labels.shape, lambda t, s: labels[t, s].astype(np.float32) * 50,
        spacing=(SPACING, SPACING), origins=origins, axes=np.eye(3)[:2],
        read_labels=lambda t: labels[t], labelled_phases=tuple(range(len(labels))),
    )  # fmt: skip
    return replace(stack, **settings)
