"""Figures of a cardiac MR report: volume curve, contours, polar plot."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from xraygpt.cardiac.function import MUSCLE, Function
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import StackLabels, heart_region
from xraygpt.measure.aha_segments import SEGMENTS, polar_place
from xraygpt.segmentation.labels import INFARCT, LV, NO_REFLOW, RV
from xraygpt.studies.report import Figure

COLOURS = {"lv": "#ff5a4f", "myocardium": "#3ddc84", "rv": "#4fa3ff", "infarct": "#ffb300"}
"""Colours of contours, by structure."""
OUTLINES = (
    ("rv", (RV,)), ("myocardium", (LV, *MUSCLE)), ("lv", (LV,)), ("infarct", (INFARCT, NO_REFLOW)),
)  # fmt: skip
"""Contours, by structure, and the label values that each surrounds."""
_COLUMNS = 6


def volume_curve(stack: Stack, function: Function) -> Figure:
    """Draw the volumes of both ventricles over the heartbeat."""
    figure, axes = _canvas(6.4, 3.2)
    times = stack.times
    x = function.phases + 1.0 if times is None else times[function.phases] * 1000
    curves = [("left ventricle", function.left.volumes, COLOURS["lv"])]
    if function.right is not None:
        curves.append(("right ventricle", function.right.volumes, COLOURS["rv"]))
    for name, volumes, colour in curves:
        style = "o-" if len(x) == stack.phases else "o"
        axes.plot(x, volumes, style, color=colour, label=name, markersize=3.5)
    for name, index in zip(("ED", "ES"), function.left.phases, strict=True):
        axes.axvline(x[index], color="#888888", linewidth=0.8, linestyle=":")
        axes.annotate(name, (x[index], 1.01), xycoords=("data", "axes fraction"), ha="center")
    axes.set_xlabel("phase" if times is None else "time after the R wave (ms)")
    axes.set_ylabel("volume (mL)" if function.absolute else "volume (arbitrary unit)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    caption = f"Volumes over the heartbeat ({len(x)} of {stack.phases} phases measured)"
    return Figure("volume_curve", caption, _pixels(figure))


def contour_sheet(stack: Stack, labelled: StackLabels, phase: int, name: str) -> Figure:
    """Draw the contours of one phase on all slices, cropped to the heart.

    Args:
        stack: The stack.
        labelled: Its label maps.
        phase: Phase of the stack.
        name: Such as ``end diastole``.
    """
    index = int(np.flatnonzero(labelled.phases == phase)[0])
    labels = labelled.labels[index]
    rows = -(-stack.slices // _COLUMNS)
    columns = min(stack.slices, _COLUMNS)
    figure, all_axes = _canvas(1.75 * columns, 1.75 * rows + 0.1, rows, columns)
    region = heart_region(labels, margin=0.1)
    for i, axes in enumerate(np.atleast_1d(all_axes).flat):
        axes.axis("off")
        if i < stack.slices:
            draw_contours(axes, stack.image(phase, i), labels[i])
            axes.set_title(f"slice {i + 1}", fontsize=7, pad=2)
            if region is not None:
                axes.set_xlim(region.left - 0.5, region.right - 0.5)
                axes.set_ylim(region.bottom - 0.5, region.top - 0.5)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.93, wspace=0.03, hspace=0.12)
    present = [n for n, values in OUTLINES if np.isin(labels, values).any()]
    words = {"rv": "right ventricle blue", "lv": "left ventricle red", "infarct": "infarct orange",
             "myocardium": "outer edge of the myocardium green"}  # fmt: skip
    caption = f"{name.capitalize()}, phase {phase + 1}: {', '.join(words[n] for n in present)}"
    return Figure(name.replace(" ", "_"), caption, _pixels(figure), wide=True)


def draw_contours(axes: Any, image: np.ndarray, labels: np.ndarray) -> None:
    """Draw an image (H, W) and the contours of its label map on matplotlib axes."""
    low, high = np.percentile(image, (1, 99.5))
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    for name, values in OUTLINES:
        mask = np.isin(labels, values)
        if mask.any():
            axes.contour(mask, [0.5], colors=COLOURS[name], linewidths=0.9)


def polar_plot(values: np.ndarray, name: str, caption: str, unit: str, digits: int = 0) -> Figure:
    """Draw the values of the 17 segments on a polar plot (bull's-eye).

    Args:
        values: (17,); NaN for a segment without a value.
        name: Name of the figure.
        caption: What the values are.
        unit: Their unit.
        digits: Decimal places.
    """
    import matplotlib
    from matplotlib.colors import Normalize
    from matplotlib.patches import Wedge

    figure, axes = _canvas(3.6, 3.6)
    known = values[np.isfinite(values)]
    high = float(known.max()) if len(known) else 1.0
    scale = Normalize(0, max(high, 1e-6))
    colours = matplotlib.colormaps["viridis"]
    for number in range(1, len(SEGMENTS) + 1):
        place, value = polar_place(number), float(values[number - 1])
        shade = colours(scale(value)) if np.isfinite(value) else "#dddddd"
        width = place.outer - place.inner
        axes.add_patch(
            Wedge((0, 0), place.outer, place.start, place.stop, width=width, facecolor=shade,
                  edgecolor="white", linewidth=1)
        )  # fmt: skip
        radius, angle = (place.outer + place.inner) / 2, np.radians((place.start + place.stop) / 2)
        x, y = (0, 0) if number == 17 else (radius * np.cos(angle), radius * np.sin(angle))
        text = f"{value:.{digits}f}" if np.isfinite(value) else "–"
        ink = "white" if np.isfinite(value) and scale(value) < 0.6 else "black"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink)
    for x, y, text in ((0, 1.08, "anterior"), (0, -1.08, "inferior")):
        axes.text(x, y, text, ha="center", va="center", fontsize=8)
    axes.text(-1.08, 0, "septal", rotation=90, ha="center", va="center", fontsize=8)
    axes.text(1.08, 0, "lateral", rotation=270, ha="center", va="center", fontsize=8)
    axes.set_xlim(-1.2, 1.2)
    axes.set_ylim(-1.2, 1.2)
    axes.set_aspect("equal")
    axes.axis("off")
    return Figure(name, f"{caption} ({unit}) in the 17 segments", _pixels(figure))


def _canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes, independent of matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _pixels(figure: Any) -> np.ndarray:
    from PIL import Image

    buffer = BytesIO()
    tight: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.05}
    figure.savefig(buffer, format="png", **tight)
    buffer.seek(0)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))
