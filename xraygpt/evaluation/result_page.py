"""Self-contained HTML page with a run's scores by condition, loss curves and example cases.

The page fetches nothing: images are embedded, and its content security policy forbids the network.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.numbers import decimal, interval, with_interval
from xraygpt.evaluation.conditions import CONDITION_NAMES
from xraygpt.evaluation.history import SYNTHETIC_ONLY_WARNING, History
from xraygpt.evaluation.loss_curves import loss_chart
from xraygpt.evaluation.page_charts import score_chart
from xraygpt.evaluation.page_images import PREDICTION_COLOUR, REFERENCE_COLOUR, thumbnail
from xraygpt.evaluation.trait_table import trait_tables
from xraygpt.media.base import MediaRef
from xraygpt.tasks.payload import LabelledBox

log = logging.getLogger(__name__)

_CORPUS_NOTICE = "Contains images and texts of the corpus: share it only as its licence allows."


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sample on the page."""

    sample_id: str
    images: Sequence[MediaRef]
    prompt: str
    prediction: str
    reference: str = ""
    boxes: Sequence[LabelledBox] = ()
    reference_boxes: Sequence[LabelledBox] = ()
    mask: np.ndarray | None = None
    reference_mask: np.ndarray | None = None
    agreed: Sequence[str] = ()
    missed: Sequence[str] = ()
    added: Sequence[str] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    """Predictions by control."""
    notes: Sequence[str] = ()
    """Sentences shown under the prediction."""
    warnings: Sequence[str] = ()
    """Reasons to doubt that the model can read the images."""
    source: str = ""
    reason: str = ""
    """Why this case is shown, if not all cases are."""


def write_page(
    path: Path,
    *,
    title: str,
    subtitle: str,
    cases: Sequence[Case],
    notice: str = "",
    shown: str = "",
    verdict: Sequence[str] = (),
    scores: Sequence[Mapping[str, Any]] = (),
    losses: Sequence[Mapping[str, Any]] = (),
    history: History | None = None,
    facts: Mapping[str, Any],
    configuration: str = "",
) -> None:
    """Write the page atomically.

    Args:
        path: The HTML file.
        title: Heading.
        subtitle: Line below the heading.
        cases: Samples to show, in order.
        notice: Sentence on who may see the page; empty refers to the licence of the corpus.
        shown: Sentence that says which cases are shown.
        verdict: Sentences at the top of the page, most important first.
        scores: Rows of scores.json.
        losses: Loss rows of scores.json.
        history: Training runs, whose losses are charted.
        facts: Versions, seed, machine and so on.
        configuration: The resolved configuration as YAML.
    """
    from jinja2 import Environment

    history = history or History()
    source = (resources.files("xraygpt") / "data" / "result_page.html").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters |= {
        "decimal": decimal,
        "interval": interval,
        "with_interval": with_interval,
    }
    template = environment.from_string(source)
    conditions = dict.fromkeys(str(row["condition"]) for row in scores)
    html = template.render(
        title=title,
        subtitle=subtitle,
        verdict=verdict,
        notice=_notice(cases, history, notice or _CORPUS_NOTICE),
        conditions=[{"key": c, "name": CONDITION_NAMES.get(c, c)} for c in conditions],
        chart=score_chart(scores),
        losses=losses,
        curves=[chart for chart in map(loss_chart, history.runs) if chart],
        cases=[_template_case(case) for case in cases],
        shown=shown,
        findings=sorted({f for c in cases for f in (*c.agreed, *c.missed, *c.added)}),
        scores=scores,
        tables=trait_tables(scores),
        facts=list(facts.items()),
        configuration=configuration,
    )
    write_text_atomic(path, html)


def _is_synthetic(case: Case) -> bool:
    return case.source.startswith("SYNTHETIC")


def _notice(cases: Sequence[Case], history: History, notice: str) -> str:
    if cases and all(map(_is_synthetic, cases)):
        return "The images are SYNTHETIC."
    if history.trained_on_synthetic_only:
        notice = f"{SYNTHETIC_ONLY_WARNING} {notice}"
    return notice


def _template_case(case: Case) -> dict[str, Any]:
    return {
        **vars(case),
        "findings": [*case.agreed, *case.missed, *case.added],
        "pictures": _pictures(case),
        "views": ", ".join(r.view for r in case.images if r.view),
        "synthetic": _is_synthetic(case),
        "others": [
            {"name": CONDITION_NAMES.get(k, k), "text": text} for k, text in case.others.items()
        ],
    }


def _pictures(case: Case) -> list[dict[str, str]]:
    pictures = []
    for index, ref in enumerate(case.images):
        try:
            data = _case_thumbnail(case, index, ref)
        except (ValueError, OSError) as error:
            log.warning("cannot show a thumbnail for %s on the page: %s", case.sample_id, error)
        else:
            pictures.append({"data": data, "alt": f"{case.sample_id} {ref.view}".strip()})
    return pictures


def _case_thumbnail(case: Case, index: int, ref: MediaRef) -> str:
    """Return a thumbnail of an image with its boxes and, for the first image, the masks."""
    boxes = [
        (colour, box)
        for colour, group in (
            (PREDICTION_COLOUR, case.boxes),
            (REFERENCE_COLOUR, case.reference_boxes),
        )
        for box in group
        if box.get("image", 0) == index
    ]
    masks = [
        (colour, mask)
        for colour, mask in (
            (PREDICTION_COLOUR, case.mask),
            (REFERENCE_COLOUR, case.reference_mask),
        )
        if mask is not None and index == 0
    ]
    return thumbnail(ref, boxes, masks)
