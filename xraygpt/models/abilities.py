"""What a model was trained to do: `abilities.json` in its folder.

Training derives the file from the questions and answers in the training data. Chat, prediction,
the API and the demo page offer what it lists, and say so when they are asked for anything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, Self

from xraygpt.common.errors import WeightsError
from xraygpt.datasets.base import DEFAULT_VOCABULARY, StudyDataset
from xraygpt.media.row_labels import row_views
from xraygpt.prompting.content import strip_marks
from xraygpt.prompting.renderer import Turn
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.questions import asks_for_report_with_findings, is_code_question

ABILITIES = "abilities.json"
MAX_SAMPLES = 500
"""Number of training samples, evenly spaced, from which abilities are derived."""

_STANDARD_VIEWS = {"pa": "frontal", "ap": "frontal", "ll": "lateral", "rl": "lateral"}
Questions = Literal["any", "findings", "none"]


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a model was trained to do; the defaults mean that nothing is known.

    Attributes:
        reports: Whether it writes reports.
        sections: Sections that its reports have under headings, such as ``findings``; empty if
            its reports have no headings.
        questions: Whether it answers any question, only yes/no questions about findings, or none.
        findings: Findings that its language model was trained to answer yes/no questions about.
        views: Views of its training images, such as ``frontal``; empty if they are not known.
        needs_image: Whether every training sample had an image.
        vocabulary: Name of the vocabulary of the findings.
        decoding_scores: Scores by decoding mode ("as evaluated", "fast draft") and metric, for
            users who choose a mode; entered by hand from an evaluation.
        map_note: A sentence about how far its attention maps can be trusted; entered by hand from
            `benchmarks/map_sides.py`.
    """

    reports: bool = True
    sections: tuple[str, ...] = ("findings", "impression")
    questions: Questions = "any"
    findings: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    needs_image: bool = False
    vocabulary: str = DEFAULT_VOCABULARY
    decoding_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    map_note: str = ""

    def save(self, folder: Path) -> None:
        """Write the abilities to `abilities.json` in a model folder."""
        text = json.dumps(asdict(self), indent=1)
        (folder / ABILITIES).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | None) -> Self:
        """Read `abilities.json` from a model folder; without the file, nothing is known.

        Raises:
            WeightsError: The file is damaged or contains an unknown key.
        """
        path = None if folder is None else folder / ABILITIES
        if path is None or not path.is_file():
            return cls()
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            unknown = set(row) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown key {sorted(unknown)[0]}")
            lists = {k: tuple(v) for k, v in row.items() if isinstance(v, list)}
            abilities = cls(**{**row, **lists})
            get_vocabulary(abilities.vocabulary)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise WeightsError(f"{path} cannot be read: {error}") from None
        return abilities


def abilities_of(datasets: Sequence[StudyDataset], prompts: Iterable[str]) -> Abilities:
    """Derive what a model learns from its training data.

    Args:
        datasets: The training data of all corpora.
        prompts: The model's prompts, which ask for a report.
    """
    parts = [_derive(data, set(prompts)) for data in datasets if len(data)]
    if not parts:
        return Abilities()
    questions: dict[int, Questions] = {0: "none", 1: "findings", 2: "any"}
    views = [part.views for part in parts]
    return replace(
        parts[0],
        reports=any(part.reports for part in parts),
        sections=_union(part.sections for part in parts if part.reports),
        questions=questions[max(_RANKS[part.questions] for part in parts)],
        findings=_union(part.findings for part in parts),
        views=_union(views) if all(views) else (),
        needs_image=all(part.needs_image for part in parts),
    )


_RANKS: dict[Questions, int] = {"none": 0, "findings": 1, "any": 2}


def _union(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in names for name in part))


def _derive(data: StudyDataset, prompts: set[str]) -> Abilities:
    vocabulary = get_vocabulary(data.vocabulary)
    step = max(len(data) // MAX_SAMPLES, 1)
    reports, free = False, False
    findings: set[str] = set()
    answers: list[str] = []
    for i in range(0, len(data), step):
        for question, answer in _pairs(data.get_turns(i)):
            finding = vocabulary.finding_of_question(question)
            if not question or question in prompts or asks_for_report_with_findings(question):
                reports = True
                answers.append(answer)
            elif finding:
                findings.add(finding)
            elif not is_code_question(question):
                free = True
    records = [data.records[i] for i in range(0, len(data), step)]
    refs = [ref for record in records for ref in record.media]
    return Abilities(
        reports=reports,
        sections=_headings(answers),
        questions="any" if free else "findings" if findings else "none",
        findings=tuple(name for name in vocabulary.findings if name in findings),
        views=_views([view for ref in refs for view in row_views(ref.view)]),
        needs_image=all(record.media for record in records),
        vocabulary=data.vocabulary,
    )


def _pairs(turns: Sequence[Turn]) -> Iterable[tuple[str, str]]:
    """Yield the questions, without media marks, and their answers."""
    question = ""
    for turn in turns:
        if turn["role"] == "user":
            question = " ".join(strip_marks(turn["text"]).split())
        elif turn["role"] == "assistant":
            yield question, turn["text"]


def _headings(answers: Sequence[str]) -> tuple[str, ...]:
    """Return the sections whose heading begins a line or sentence of most reports."""
    names = ("findings", "impression")
    shares = {n: sum(f"{n}:" in text.lower() for text in answers) for n in names}
    return tuple(n for n, count in shares.items() if 2 * count > len(answers))


def _views(views: Sequence[str | None]) -> tuple[str, ...]:
    """Return the distinct views, with PA and AP as frontal; empty if one is not known."""
    names = {_STANDARD_VIEWS.get(str(v).lower(), str(v).lower()) for v in views}
    return tuple(sorted(names)) if views and all(views) else ()
