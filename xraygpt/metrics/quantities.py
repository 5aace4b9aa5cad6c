"""Numbers in chest X-ray reports: sizes, levels, ribs; and a score that falls when one changes.

Word overlap hardly notices a changed number: "3 mm" instead of "3 cm" is one word of fifty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from xraygpt.metrics.statistics import RowRatio, Score, ratio_score
from xraygpt.metrics.text import rouge_values

_UNIT = r"(?:mm|millimet\w+|cm|centimet\w+|m|%|percent|degrees?)"
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
_QUANTITY = re.compile(
    rf"(?<![\w./:])(?P<numbers>{_NUMBER}(?:\s*(?:x|×|by|to|-)\s*{_NUMBER}){{0,2}})"
    rf"\s*-?\s*(?P<unit>{_UNIT})?(?![\w]|[/:]\d)",
    re.IGNORECASE,
)
_LEVEL = re.compile(r"\b(?P<level>[TLC]\d{1,2}|\d{1,2}(?:st|nd|rd|th))\b", re.IGNORECASE)
_MILLIMETRES = {"m": 1.0, "c": 10.0}  # by the first letter of mm and cm


def quantities(text: str) -> list[str]:
    """Return the numbers of a report in one spelling, such as ``30 mm``, ``t8``, ``4th``.

    Lengths are in millimetres. Numbers that are part of a word, a date or a time are left out.
    """
    found = [match["level"].lower() for match in _LEVEL.finditer(text)]
    for match in _QUANTITY.finditer(text):
        unit = (match["unit"] or "").lower()
        scale, name = 1.0, unit
        if unit.startswith(("mm", "milli", "cm", "centi")):
            scale, name = _MILLIMETRES[unit[0]], "mm"
        elif unit in ("%", "percent"):
            name = "%"
        for number in re.findall(_NUMBER, match["numbers"]):
            value = float(number.replace(",", "")) * scale
            found.append(f"{value:g} {name}".strip())
    return found


def number_agreement(prediction: str, reference: str) -> float:
    """Return the F1 of the numbers of two reports, each counted as often as it occurs.

    Returns:
        A number in [0, 1]; 1 if neither report has a number.
    """
    own, other = Counter(quantities(prediction)), Counter(quantities(reference))
    total = own.total() + other.total()
    return 2 * (own & other).total() / total if total else 1.0


def number_aware_scores(
    predictions: Sequence[str], references: Sequence[str], groups: Sequence[str] | None = None
) -> list[Score]:
    """Compute ROUGE-L times the agreement of numbers, and that agreement alone.

    Args:
        predictions: Generated reports.
        references: Reference reports.
        groups: The study of each sample; intervals resample whole studies.

    Returns:
        ``ROUGE-L_numbers`` over all reports, and ``numbers_F1`` over pairs in which a report has a
        number.
    """
    pairs = list(zip(predictions, references, strict=True))
    agreement = [number_agreement(p, r) for p, r in pairs]
    rouge = [rouge_values(p, r)["ROUGE-L"] for p, r in pairs]
    overlap = [value * a for value, a in zip(rouge, agreement, strict=True)]
    has_any = [float(bool(quantities(p) or quantities(r))) for p, r in pairs]
    mean = RowRatio(
        lambda s: np.divide(s[:, 0], s[:, 1], out=np.full(len(s), np.nan), where=s[:, 1] > 0)
    )
    rows = {
        "ROUGE-L_numbers": (overlap, [1.0] * len(pairs), "ROUGE-L times F1 of numbers"),
        "numbers_F1": (
            [a * h for a, h in zip(agreement, has_any, strict=True)], has_any,
            "F1 of numbers, reports with numbers",
        ),
    }  # fmt: skip
    return [
        ratio_score(
            name, np.array([above, below], dtype=float).reshape(2, -1).T, mean, signature, groups
        )
        for name, (above, below, signature) in rows.items()
    ]


def change_one_number(text: str) -> str | None:
    """Return a report with its first number replaced by another; None if it has none.

    Numbers of dates and times do not count.
    """
    match = _QUANTITY.search(text)
    if match is None:
        return None
    match = re.compile(_NUMBER).search(text, match.start())
    if match is None:
        return None
    value = float(match[0].replace(",", ""))
    other = f"{value * 2 + 1:g}"
    return text[: match.start()] + other + text[match.end() :]
