"""One self-contained HTML file of a run: scores beside controls, loss curves, cases with pictures.

It fetches nothing: pictures are inside it, and its content policy forbids the network.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from xraygpt.common.checkpoint import write_file
from xraygpt.common.keyed_random import keyed_random
from xraygpt.evaluation.history import DRAWINGS_ALONE, History
from xraygpt.media.base import MediaRef, read
from xraygpt.runners import logs
from xraygpt.tasks.payload import FoundBox

log = logging.getLogger(__name__)

SIDE, QUALITY = 256, 70  # pixels of a picture's longer side; of JPEG
NAMES = {
    "true": "true image",
    "shuffled": "another study's image",
    "blank": "black image",
    "mirrored": "mirrored image",
    "most_common": "most common answer",
    "nearest": "answer of the most similar training image",
}
HEADLINES = (
    "drawn_macro_F1", "drawn_laterality",
    "COCO BLEU-4", "COCO ROUGE-L", "frequent_coding_macro_F1",
    "BLEU-4", "ROUGE-L", "findings_text_F1", "abnormal_text_F1", "findings_coding_F1",
    "abnormal_coding_F1", "accuracy", "accuracy_closed", "accuracy_open", "distinct",
)  # fmt: skip
MOST = 8
"""How many metrics are charted for a task that reports none of these."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sample on the page."""

    sample_id: str
    images: Sequence[MediaRef]
    prompt: str
    prediction: str
    reference: str = ""
    boxes: Sequence[FoundBox] = ()
    reference_boxes: Sequence[FoundBox] = ()
    mask: np.ndarray | None = None
    reference_mask: np.ndarray | None = None
    agreed: Sequence[str] = ()
    missed: Sequence[str] = ()
    added: Sequence[str] = ()
    others: Mapping[str, str] = field(default_factory=dict)  # control -> what was said then
    source: str = ""
    picked: str = ""  # why it is shown, where not all are


def write_page(
    path: Path,
    *,
    title: str,
    subtitle: str,
    cases: Sequence[Case],
    shown: str = "",
    scores: Sequence[Mapping[str, Any]] = (),
    losses: Sequence[Mapping[str, Any]] = (),
    history: History | None = None,
    facts: Mapping[str, Any],
    configuration: str = "",
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: The HTML file.
        title: Of the page.
        subtitle: One line below it.
        cases: Samples to show, in order.
        shown: Which cases these are.
        scores: Rows of scores.json.
        losses: Likewise.
        history: Its training runs; their losses are drawn.
        facts: Versions, seed, machine and so on.
        configuration: The resolved YAML.
    """
    from jinja2 import Environment

    history = history or History()
    source = (resources.files("xraygpt") / "data" / "result_page.html").read_text("utf-8")
    template = Environment(autoescape=True, trim_blocks=True).from_string(source)
    synthetic = bool(cases) and all(c.source.startswith("SYNTHETIC") for c in cases)
    notice = "Holds images and texts of the corpus: share it only as the corpus's licence allows."
    if synthetic:
        notice = "The images are SYNTHETIC drawings."
    elif history.drawings_alone:
        notice = f"{DRAWINGS_ALONE} {notice}"
    present = list(dict.fromkeys(str(r["condition"]) for r in scores))
    html = template.render(
        title=title,
        subtitle=subtitle,
        notice=notice,
        conditions=[{"key": c, "name": NAMES.get(c, c)} for c in present],
        chart=_chart(scores),
        losses=losses,
        curves=[c for c in map(_curve, history.runs) if c],
        cases=[_shown(case) for case in cases],
        shown=shown,
        findings=sorted({f for c in cases for f in (*c.agreed, *c.missed, *c.added)}),
        scores=scores,
        facts=list(facts.items()),
        configuration=configuration,
    )
    write_file(path, html)


BEST, WORST, RANDOM = "among the best", "among the worst", "drawn at random"


def chosen(count: int, most: int, seed: int) -> list[int]:
    """At most `most` of `count` places, drawn at random, in order."""
    places = list(range(count))
    if count > most:
        places = sorted(keyed_random(seed, "cases").sample(places, most))
    return places


def picked(agreed: Sequence[int], wrong: Sequence[int], most: int, seed: int) -> dict[int, str]:
    """At most `most` cases in order, and why each is shown: a tenth the best, a tenth the worst.

    Args:
        agreed: Per case what answer and reference agree in.
        wrong: Per case what only one of them has.
        most: How many to show; with all of them there is nothing to pick.
        seed: Of the rest, which is drawn.
    """
    count = len(agreed)
    if count <= most:
        return dict.fromkeys(range(count), "")
    order = sorted(range(count), key=lambda i: (wrong[i], -agreed[i], i))
    edge = most // 10
    why = dict.fromkeys(order[:edge], BEST)
    why |= dict.fromkeys(order[::-1][:edge], WORST)
    rest = [i for i in range(count) if i not in why]
    why |= dict.fromkeys(keyed_random(seed, "cases").sample(rest, most - len(why)), RANDOM)
    return dict(sorted(why.items()))


def _shown(case: Case) -> dict[str, Any]:
    pictures = []
    for place, ref in enumerate(case.images):
        try:
            pictures.append(
                {
                    "data": _thumbnail(ref, case, place),
                    "alt": f"{case.sample_id} {ref.view}".strip(),
                }
            )
        except (ValueError, OSError) as error:
            log.warning("no picture of %s on the page: %s", case.sample_id, error)
    return {
        **vars(case),
        "findings": [*case.agreed, *case.missed, *case.added],
        "pictures": pictures,
        "views": ", ".join(r.view for r in case.images if r.view),
        "synthetic": case.source.startswith("SYNTHETIC"),
        "others": [{"name": NAMES.get(k, k), "text": v} for k, v in case.others.items()],
    }


PREDICTED, TRULY = (255, 140, 0), (0, 190, 90)
"""Colours (red, green, blue) of what was predicted, and of the truth."""


def _thumbnail(ref: MediaRef, case: Case, place: int) -> str:
    """A small JPEG as a data URI, with the case's boxes and masks.

    Raises:
        ValueError: The file cannot be read, or holds no picture.
    """
    pixels = read(ref).still()
    image = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    image.thumbnail((SIDE, SIDE))
    image = _marked(image, case, place)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _marked(image: Image.Image, case: Case, place: int) -> Image.Image:
    """A picture with the outlines of predicted and true boxes and masks."""
    boxes = [(PREDICTED, case.boxes), (TRULY, case.reference_boxes)]
    masks = [(PREDICTED, case.mask), (TRULY, case.reference_mask)] if place == 0 else []
    drawn = [(c, b["box"]) for c, several in boxes for b in several if b.get("image", 0) == place]
    outlined = [(colour, mask) for colour, mask in masks if mask is not None]
    if not drawn and not outlined:
        return image
    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for colour, (x0, y0, x1, y1) in drawn:
        draw.rectangle((x0 * width, y0 * height, x1 * width, y1 * height), outline=colour, width=2)
    for colour, mask in outlined:
        flat = mask if mask.ndim == 2 else mask[len(mask) // 2]
        classes = np.asarray(
            Image.fromarray(flat).resize((width, height), Image.Resampling.NEAREST)
        )
        edge = np.zeros(classes.shape, bool)
        edge[1:] |= classes[1:] != classes[:-1]
        edge[:, 1:] |= classes[:, 1:] != classes[:, :-1]
        pixels = np.array(image)
        pixels[edge] = colour
        image = Image.fromarray(pixels)
    return image


def _chart(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Headline metrics, or others in [0, 1]; one strip a condition, in per cent of the rail."""
    finite = [r for r in scores if math.isfinite(r["value"])]
    names = list(dict.fromkeys(str(r["name"]) for r in finite))
    beyond = {r["name"] for r in finite if r["low"] < 0 or r["high"] > 1}
    chart = []
    known = [name for name in HEADLINES if name in names]
    for name in known or [name for name in names if name not in beyond][:MOST]:
        rows = [r for r in finite if r["name"] == name]
        strips = []
        for row in rows:
            low, high = (min(max(row[k], 0.0), 1.0) * 100 for k in ("low", "high"))
            strips.append(
                {
                    "key": row["condition"],
                    "low": f"{low:.1f}",
                    "width": f"{high - low:.1f}",
                    "at": f"{min(max(row['value'], 0.0), 1.0) * 100:.1f}",
                    "label": f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})",
                }
            )
        chart.append({"name": name.replace("_", " "), "n": rows[0]["n"], "rows": strips})
    return chart


_LINES = (
    ("train/loss", "true", "training"),
    ("val/loss", "most_common", "val"),
    ("val/loss_shuffled", "shuffled", "val with another study's image"),
)


def _curve(run: Path) -> dict[str, Any] | None:
    """Polylines of a run's losses, the training loss as a mean over ten rows."""
    rows = logs.read_rows(run / "metrics.jsonl")
    series = {}
    for name, _, _ in _LINES:
        points = [(r["step"], r[name]) for r in rows if name in r and math.isfinite(r[name])]
        if name == "train/loss":
            points = [
                (step, float(np.mean([v for _, v in points[max(i - 9, 0) : i + 1]])))
                for i, (step, _) in enumerate(points)
            ]
            points = points[:: max(len(points) // 200, 1)]
        if points:
            series[name] = points
    if not series:
        return None
    last = max(step for points in series.values() for step, _ in points)
    values = [v for points in series.values() for _, v in points]
    low, high = min(values), float(np.percentile(values, 98))
    spread = max(high - low, 1e-6)

    def at(value: float) -> float:
        return round(190 - 175 * min((value - low) / spread, 1.02), 1)

    lines, words = [], []
    for name, key, word in _LINES:
        if name in series:
            drawn = " ".join(f"{42 + 350 * s / max(last, 1):.1f},{at(v)}" for s, v in series[name])
            lines.append({"key": key, "points": drawn, "width": 1.3 if key == "true" else 2})
            words.append(f"{word} {series[name][-1][1]:.3f}")
    grid = [{"at": at(v), "label": f"{v:.2f}"} for v in np.linspace(low, high, 4)]
    caption = f"nats per target token, last values: {', '.join(words)}"
    return {"name": run.parent.name, "lines": lines, "grid": grid, "last": last, "caption": caption}
