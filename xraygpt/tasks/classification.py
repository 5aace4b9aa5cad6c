"""Which findings an image shows, from a list in the model's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from xraygpt.common.errors import InputError
from xraygpt.common.registry import registry
from xraygpt.instructions.wording import load_wording
from xraygpt.metrics.radvlm import classification_scores, label_scores
from xraygpt.metrics.reports import positive_findings
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import Generation
from xraygpt.tasks.base import BaseTask, Comparison, Prediction
from xraygpt.tasks.boxes import names_in, spelled_names
from xraygpt.vocabulary.chest_labeller import FINDINGS
from xraygpt.vocabulary.chest_labeller import label as read_findings

NO_FINDING = "no_finding"
_NORMAL = re.compile(
    r"\bno (?:\w+ ){0,3}(?:finding|abnormalit|disease|patholog)|\bnormal\b|\bunremarkable\b",
    re.IGNORECASE,
)
SIGNATURE = "xraygpt rule-based labeller, uncertain counts as positive"


@registry.register_task("abnormality_classification")
class AbnormalityClassification(BaseTask):
    """Asks for all findings of an image.

    Answers are read twice: by the rule-based labeller, which knows synonyms and negation, and as
    RadVLM does, by names as substrings. The true labels are `Sample.meta["labels"]`, among the
    judged ones, `Sample.meta["pathologies"]`; the builder `instructions` provides both.
    """

    page_title = "findings"
    default_controls = ("shuffled", "blank", "no_image", "most_common", "nearest")
    deciding_scores: ClassVar[Mapping[str, str]] = {
        "labeller_F1_macro": "macro F1 of findings",
        "radvlm_F1_macro": "macro F1 of findings named",
    }

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of classification in free text."""

        generate: Generation = field(default_factory=lambda: Generation(max_new_tokens=128))
        """How answers are decoded in evaluation."""

    config: Config

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute precision, recall and F1 by the labeller and by substrings.

        Raises:
            InputError: The corpus has no labels.
        """
        truth = [_true_labels(prediction) for prediction in predictions]
        judged = [prediction.meta.get("pathologies") or () for prediction in predictions]
        labels = sorted({name for names in (*truth, *judged) for name in names})
        unknown = unreadable(labels)
        known = [name for name in labels if name not in unknown]
        self.left_out = {}
        if unknown:
            self.left_out["labeller"] = f"it has no name of its own for {', '.join(unknown)}"
        studies = [prediction.study_id for prediction in predictions]
        texts = [prediction.prediction for prediction in predictions]
        scores: list[Score] = []
        if known:
            read = [named_by_labeller(text, known) for text in texts]
            expected = [set(names) & set(known) for names in truth]
            scores += label_scores("labeller", read, expected, known, SIGNATURE, studies, judged)
        return [*scores, *classification_scores(texts, truth, labels, studies)]

    def compare(self, prediction: Prediction) -> Comparison:
        """Return the findings that the answer names rightly, misses and adds, by the labeller."""
        truth = set(_true_labels(prediction))
        labels = truth | set(prediction.meta.get("pathologies") or ())
        named = named_by_labeller(prediction.prediction, sorted(labels))
        return Comparison(sorted(named & truth), sorted(truth - named), sorted(named - truth))


def _true_labels(prediction: Prediction) -> Sequence[str]:
    labels = prediction.meta.get("labels")
    if labels is None:
        raise InputError(
            f"{prediction.sample_id} has no labels (meta.labels); read the corpus with the builder "
            "instructions (docs/radvlm_evaluation.md)"
        )
    return list(labels)


@lru_cache(maxsize=512)
def findings_of_label(name: str) -> frozenset[str]:
    """Return the labeller's findings that a collection's label stands for; empty if none does."""
    key = _key(name)
    return frozenset({key}) if key in FINDINGS else _findings_said(name)


@lru_cache(maxsize=512)
def _findings_said(name: str) -> frozenset[str]:
    """Return the findings that the labeller reads in a sentence with the label's name."""
    noun = load_wording().name(name).noun
    for text in (name.replace("_", " "), noun):
        found = {n for n, v in read_findings(f"There is {text}.").items() if v == "positive"}
        found.discard(NO_FINDING)
        if found:
            return frozenset(found)
    return frozenset()


def named_by_labeller(text: str, labels: Sequence[str]) -> set[str]:
    """Return the labels that a text affirms or suspects, as the rule-based labeller reads it.

    The labeller reads wider findings in narrower ones (a consolidation is an opacity, a pacemaker a
    support device). A label whose name does not occur is therefore left out if another one, whose
    name occurs, explains the finding, or if several labels are read alike.
    """
    found = positive_findings(text) - {NO_FINDING}
    said = set(names_in(text, spelled_names(labels)))
    read = [name for name in labels if findings_of_label(name) & found]
    named = {
        name
        for name in read
        if name in said
        or not (
            any(other in said and _reads_alike(name, other) for other in read if other != name)
            or _is_shared(name, labels)
        )
    }
    normal = {name for name in labels if _key(name) == NO_FINDING}
    return named | normal if normal and not found and _NORMAL.search(text) else named


def unreadable(labels: Sequence[str]) -> list[str]:
    """Return the labels that the labeller does not read, or reads as others, in their own name."""
    wrong = []
    for name in labels:
        if _key(name) == NO_FINDING:
            continue
        texts = (f"There is {noun}." for noun in (load_wording().name(name).noun, _plain(name)))
        if not any(named_by_labeller(text, labels) == {name} for text in texts):
            wrong.append(name)
    return wrong


def _reads_alike(name: str, other: str) -> bool:
    return bool(findings_of_label(name) & _findings_said(other))


def _is_shared(name: str, labels: Sequence[str]) -> bool:
    """Check whether another label is read as the same finding, and this one is not its name."""
    if _key(name) in FINDINGS:
        return False
    own = _findings_said(name)
    return any(other != name and own & _findings_said(other) for other in labels)


def _key(name: str) -> str:
    return name.lower().replace(" ", "_")


def _plain(name: str) -> str:
    return name.replace("_", " ").lower()
