"""Conversations about an image: each answer is judged in its dialogue, boxes by their overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from xraygpt.common.registry import registry
from xraygpt.metrics.box_answers import box_answer_scores
from xraygpt.metrics.reports import finding_scores, positive_findings
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.text import rouge_scores
from xraygpt.metrics.verdicts import Kind, Question, read_verdicts, text_key, verdict_scores
from xraygpt.metrics.vqa import normalise
from xraygpt.tasks.base import Comparison, Prediction
from xraygpt.tasks.boxes import BoxTask, as_boxes, true_boxes
from xraygpt.tasks.judged import missed_urgent


class Round(NamedTuple):
    """One question of a dialogue.

    Attributes:
        question: The question.
        expected: The reference's answer.
        generated: The model's answer.
        boxes: Whether the reference's answer has boxes, which are scored by overlap.
    """

    question: str
    expected: str
    generated: str
    boxes: bool


@dataclass(frozen=True)
class Dialogue:
    """A dialogue with the model's answers.

    Attributes:
        name: Its id.
        study_id: The study of its image.
        rounds: Questions and answers, in order.
        facts: What is known of the image: report, view, sex.
        labels: Findings of the image; None if they are not known.
    """

    name: str
    study_id: str
    rounds: tuple[Round, ...]
    facts: Mapping[str, str]
    labels: Sequence[str] | None

    @property
    def is_judged(self) -> bool:
        """Whether any answer is text; answers with boxes are scored by overlap."""
        return any(not r.boxes for r in self.rounds)

    @property
    def key(self) -> str:
        """Name of the verdict on these answers."""
        texts = (part for r in self.rounds for part in (r.question, r.expected, r.generated))
        return text_key("conversation", self.name, *texts)

    def sections(self) -> dict[str, str]:
        """Return what a judge is shown: the notes about the image, and the dialogue."""
        sections = dict(self.facts)
        if self.labels is not None:
            sections["findings"] = ", ".join(self.labels) or "none"
        rounds = [
            f"User: {r.question}\nExpected: {r.expected}\nAssistant: "
            + ("(a place; scored apart)" if r.boxes else r.generated or "(no answer)")
            for r in self.rounds
        ]
        return {**sections, "conversation": "\n\n".join(rounds)}


def dialogues(predictions: Sequence[Prediction]) -> list[Dialogue]:
    """Group the answers of one condition by their dialogue."""
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        name = str(prediction.meta.get("dialogue") or prediction.sample_id)
        groups.setdefault(name, []).append(prediction)
    return [_dialogue(name, group) for name, group in groups.items()]


def _dialogue(name: str, predictions: list[Prediction]) -> Dialogue:
    ordered = sorted(predictions, key=lambda p: p.meta.get("answer_number", 1))
    rounds = tuple(
        Round(
            p.meta.get("question") or p.prompt, p.reference, p.prediction,
            bool(p.meta.get("boxes")),
        )
        for p in ordered
    )  # fmt: skip
    meta = ordered[0].meta
    return Dialogue(name, ordered[0].study_id, rounds, meta.get("facts", {}), meta.get("labels"))


@registry.register_task("conversation")
class Conversation(BoxTask):
    """Asks the questions of a dialogue one by one.

    The corpus has one sample for each answer (`dialogue: each_answer` of the builder
    `instructions`) with the true dialogue before it; in the condition `own_history`, the model's
    own answers are there instead. Answers with boxes are scored by their overlap, the others by the
    findings they name and by a judge, if ``python -m xraygpt.judge conversation`` has been run.
    """

    page_title = "conversations"
    controls: ClassVar[tuple[str, ...]] = (*BoxTask.controls, "own_history")
    judges = ("conversation",)
    default_controls: ClassVar[tuple[str, ...]] = ("own_history", "shuffled", "blank", "no_image")
    deciding_scores: ClassVar[Mapping[str, str]] = {
        "judge_score": "judge's score",
        "findings_text_F1": "micro F1 of findings",
        "ROUGE-L": "ROUGE-L",
    }
    by_label = False

    @dataclass(kw_only=True)
    class Config(BoxTask.Config):
        """Settings of conversations."""

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute the overlap of boxes, ROUGE, findings, and the judge's score."""
        self.left_out = {}
        pointing = [p for p in predictions if true_boxes(p)]
        telling = [p for p in predictions if not true_boxes(p)]
        scores: list[Score] = []
        if pointing:
            scores += box_answer_scores(
                [as_boxes(self.predicted(p), False) for p in pointing],
                [as_boxes(true_boxes(p), False) for p in pointing],
                [p.study_id for p in pointing],
                by_label=False,
            )
        if telling:
            texts, references = [p.prediction for p in telling], [p.reference for p in telling]
            studies = [p.study_id for p in telling]
            scores += rouge_scores(texts, references, studies)
            found, known = ([positive_findings(t) for t in each] for each in (texts, references))
            scores += finding_scores(found, known, "text", studies)
        return [*self._judged(predictions), *scores]

    def _judged(self, predictions: Sequence[Prediction]) -> list[Score]:
        folder = predictions[0].folder if predictions else None
        verdicts = read_verdicts(folder, "conversation")
        if verdicts is None:
            self.left_out["judge_score"] = (
                "no verdicts in the folder; run python -m xraygpt.judge conversation FOLDER"
            )
            return []
        found = [d for d in dialogues(predictions) if d.is_judged]
        absent = sum(d.key not in verdicts.values for d in found)
        if absent:
            self.left_out["judge_score"] = (
                f"{absent} of {len(found)} dialogues are not judged yet; run python -m "
                "xraygpt.judge conversation FOLDER"
            )
            return []
        values = [_value(verdicts.values[dialogue.key]) for dialogue in found]
        studies = [dialogue.study_id for dialogue in found]
        scores = verdict_scores("judge_score", values, verdicts.judge, studies, "0 to 10")
        return [*scores, *missed_urgent([p for p in predictions if not true_boxes(p)])]

    def judge_questions(self, kind: Kind, predictions: Sequence[Prediction]) -> Iterator[Question]:
        """Yield the dialogues that have an answer in words."""
        for dialogue in dialogues(predictions):
            if dialogue.is_judged:
                yield Question(dialogue.key, dialogue.sections(), dialogue.name)

    def compare(self, prediction: Prediction) -> Comparison:
        """Return the findings that an answer names rightly, misses and adds; or its boxes."""
        if true_boxes(prediction):
            return super().compare(prediction)
        named, known = (
            positive_findings(prediction.prediction),
            positive_findings(prediction.reference),
        )
        if not named | known:
            same = normalise(prediction.prediction) == normalise(prediction.reference)
            return (
                Comparison(agreed=["same answer"]) if same else Comparison(missed=["same answer"])
            )
        return Comparison(sorted(named & known), sorted(known - named), sorted(named - known))


def _value(verdict: Mapping[str, Any] | None) -> float | None:
    return None if verdict is None else float(verdict["score"])
