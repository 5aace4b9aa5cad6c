"""A verdict in words on whether a model reads its images, from scores and their controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xraygpt.common.numbers import decimal, interval, with_interval
from xraygpt.evaluation.conditions import (
    BLANK,
    COMMON,
    CONDITION_NAMES,
    MEAN_BOX,
    MIRRORED,
    NEAREST,
    SHUFFLED,
    TRUE,
)
from xraygpt.tasks.base import BaseTask

MIN_STUDIES = 30
"""With fewer studies, the bootstrap interval is too narrow to decide."""
MARGIN = 0.05
"""A difference below this is too small to count as reading the image."""
LOSS_MARGIN = 0.02
"""The same for losses, as a share of the loss with the true image."""
IMAGE_CONTROLS = (SHUFFLED, BLANK, MIRRORED)  # the first that was run decides
ANSWER_CONTROLS = (NEAREST, COMMON, MEAN_BOX)

Outcome = Literal["reads the image", "ignores the image", "worse than the control", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """The conclusion of an evaluation.

    Attributes:
        outcome: The conclusion in a few words.
        score: Name of the score that decided, as in scores.json; empty if there was none.
        control: The control that decided, as in scores.json; empty if there was none.
        sentences: The conclusion in full, most important sentence first.
    """

    outcome: Outcome
    score: str
    control: str
    sentences: tuple[str, ...]

    def as_row(self) -> dict[str, Any]:
        """Return the entry for scores.json."""
        return {**vars(self), "sentences": list(self.sentences)}


@dataclass(frozen=True)
class _Gap:
    """How much better the true image is than a control.

    Attributes:
        control: The control.
        score: Name of the score in scores.json.
        label: The score in words.
        value: Improvement over the control, positive if the true image is better.
        low: Lower limit of its 95 % interval.
        high: Upper limit.
        margin: The smallest improvement that counts.
        unit: Unit of a loss; empty for scores.
    """

    control: str
    score: str
    label: str
    value: float
    low: float
    high: float
    margin: float
    unit: str = ""

    @property
    def numbers(self) -> str:
        """The difference in words: ``difference in accuracy 0.003, -0.010 to 0.016``."""
        digits = 4 if self.unit else 3
        limits = interval(vars(self), digits)
        return f"difference in {self.label} {decimal(self.value, digits)}, {limits}{self.unit}"

    @property
    def defined(self) -> bool:
        return all(math.isfinite(x) for x in (self.value, self.low, self.high))


def judge(task: BaseTask, result: Mapping[str, Any]) -> Verdict:
    """Decide whether the model reads its images, by the paired intervals against the controls.

    Args:
        task: Task whose `deciding_scores` name the scores; without any of them, the loss decides.
        result: Content of scores.json with `scores`, `losses` and the number of `studies`.
    """
    if not task.uses_images:
        why = "This task reads no images, so there is no control to compare it with."
        return Verdict("undecided", "", "", (why,))
    gaps = {gap.control: gap for gap in _gaps(task, result)}
    control = next((c for c in IMAGE_CONTROLS if c in gaps), "")
    if not control:
        missing = (
            "Whether the model reads the image is unknown, because no control with another image "
            "could be scored; add shuffled to run.controls."
        )
        return Verdict("undecided", "", "", (missing,))
    studies = int(result["studies"])
    outcome = _outcome(gaps[control], studies)
    sentences = [_main_sentence(gaps[control], outcome, studies)]
    sentences += [_other_sentence(gaps[c], task) for c in ANSWER_CONTROLS if c in gaps]
    sentences += _changed_sentence(task, result.get("answers_changed") or {})
    return Verdict(outcome, gaps[control].score, control, tuple(sentences))


def _gaps(task: BaseTask, result: Mapping[str, Any]) -> Iterator[_Gap]:
    """Yield the gaps by the first deciding score that is defined, or else by the loss.

    A score that is 0 for every condition says nothing, for example F1 of findings if the labeller
    recognises no finding in a corpus, and is passed over.
    """
    for name, label in task.deciding_scores.items():
        rows = [row for row in result["scores"] if row["name"] == name]
        if not any(row["value"] for row in rows):
            continue
        gaps = [
            _Gap(row["condition"], name, label, *_limits(row["true_minus"]), MARGIN)
            for row in rows
            if row["condition"] != TRUE
        ]
        gaps = [gap for gap in gaps if gap.defined]
        if any(gap.control in IMAGE_CONTROLS for gap in gaps):
            yield from gaps
            return
    losses = {row["name"]: row for row in result["losses"]}
    for control in IMAGE_CONTROLS:
        row = losses.get(f"loss_{control}_minus_true")
        if row is not None:
            margin = LOSS_MARGIN * losses[f"loss_{TRUE}"]["value"]
            unit = f" {row['signature']}"
            gap = _Gap(control, "loss_true", "loss", *_limits(row), margin, unit)
            if gap.defined:
                yield gap


def _limits(row: Mapping[str, float]) -> tuple[float, float, float]:
    return float(row["value"]), float(row["low"]), float(row["high"])


def _outcome(gap: _Gap, studies: int) -> Outcome:
    if studies < MIN_STUDIES:
        return "undecided"
    if gap.low > 0:
        return "reads the image"
    if gap.high < 0:
        return "worse than the control"
    return "ignores the image" if gap.high < gap.margin else "undecided"


def _main_sentence(gap: _Gap, outcome: Outcome, studies: int) -> str:
    """Return the conclusion with its numbers, and what to do if there is none."""
    image = _a(gap.control)
    if outcome == "reads the image":
        if gap.unit:
            how_much = f"{with_interval(vars(gap), 4)}{gap.unit} lower"
        else:
            how_much = f"{with_interval(vars(gap))} higher"
        return f"The model reads the image: its {gap.label} is {how_much} than with {image}."
    if outcome == "ignores the image":
        return f"The model does not beat {image} ({gap.numbers}): it ignores the image."
    if outcome == "worse than the control":
        return (
            f"The model does worse with the true image than with {image} ({gap.numbers}): check "
            "that every image belongs to its reference."
        )
    needed = studies_needed(gap.value, gap.low, gap.high, gap.margin, studies)
    if studies < MIN_STUDIES:
        reason = f"{studies} {'study is' if studies == 1 else 'studies are'} too few"
    else:
        reason = f"the interval is too wide with {studies} studies"
    return (
        f"Undecided whether the model reads the image: compared with {image}, {reason} "
        f"({gap.numbers}). Evaluate about {needed} studies."
    )


def _other_sentence(gap: _Gap, task: BaseTask) -> str:
    """Return one sentence on a control that answers from the training split."""
    answer = f"the most common {task.answer_noun} of the training split"
    if gap.control == NEAREST:
        answer = f"the {task.answer_noun} of the most similar training image"
    elif gap.control == MEAN_BOX:
        answer = "the constant mean box of what is asked for"
    if gap.low > 0:
        return f"It beats {answer} ({gap.numbers})."
    if gap.high < 0:
        return f"It is worse than {answer} ({gap.numbers})."
    return f"It is not clearly better than {answer} ({gap.numbers})."


def _changed_sentence(task: BaseTask, shares: Mapping[str, float]) -> list[str]:
    """Return a sentence on how many answers change with the image (image sensitivity)."""
    parts = [f"{shares[c]:.0%} with {_a(c)}" for c in IMAGE_CONTROLS if c in shares]
    return [f"Of its {task.answer_noun}s, {' and '.join(parts)} differ."] if parts else []


def _a(control: str) -> str:
    image = CONDITION_NAMES[control]
    return image if control == SHUFFLED else f"a {image}"


def studies_needed(value: float, low: float, high: float, margin: float, studies: int) -> int:
    """Estimate how many studies would decide, to two significant digits.

    The width of an interval falls with the square root of the number of studies. If the difference
    stays the same, the interval decides once it excludes 0 or lies below `margin`.

    Args:
        value: The difference.
        low: Lower limit of its interval.
        high: Upper limit of its interval.
        margin: The smallest difference that counts.
        studies: Number of studies behind the interval.
    """
    target = max(abs(value), margin - value)
    needed = studies * ((high - low) / 2 / target) ** 2 if target > 0 else studies
    needed = max(needed, MIN_STUDIES, studies + 1)
    unit = 10.0 ** max(math.floor(math.log10(needed)) - 1, 0)
    return int(math.ceil(needed / unit - 1e-9) * unit)
