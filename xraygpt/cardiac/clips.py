"""The slices of a cine as clips that a page plays, with contours that can be switched off."""

from __future__ import annotations

import numpy as np

from xraygpt.cardiac.figures import COLOURS, OUTLINES
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import StackLabels
from xraygpt.cardiac.video import DEFAULT_DURATION, crop_to_heart, draw_edges, enlarge, read_grey
from xraygpt.studies.report import Clip

SIDE = 320
"""Longer side of a frame in pixels; contours are drawn at this size."""
_NAMES = {"rv": "right ventricle", "myocardium": "outer edge of the myocardium",
          "lv": "left ventricle", "infarct": "infarct"}  # fmt: skip


def slice_clips(stack: Stack, labelled: StackLabels) -> tuple[Clip, ...]:
    """Return one clip per slice, cropped to the heart; phases without label maps have no contours.

    Raises:
        DataError: An image cannot be read.
    """
    rows, columns = crop_to_heart(labelled)
    index = {int(phase): t for t, phase in enumerate(labelled.phases)}
    durations = stack.rr_intervals
    clips = []
    for i in range(stack.slices):
        frames = np.stack([enlarge(one, SIDE) for one in read_grey(stack, i, rows, columns)])
        contours = np.zeros(frames.shape, np.uint8)
        for phase, t in index.items():
            labels = labelled.labels[t, i][rows, columns]
            contours[phase] = draw_edges(labels, *frames.shape[1:])
        clips.append(
            Clip(
                name=f"slice {i + 1}",
                caption=f"{stack.name}, slice {i + 1} of {stack.slices}",
                frames=frames,
                duration=DEFAULT_DURATION if durations is None else float(durations[i]),
                times=stack.times,
                contours=contours,
                legend=tuple((_NAMES[name], COLOURS[name]) for name, _ in OUTLINES),
            )
        )
    return tuple(clips)
