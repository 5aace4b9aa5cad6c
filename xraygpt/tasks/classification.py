"""Which findings an image shows, from a list in the model's words."""

from __future__ import annotations

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
        known = [name for name in labels if findings_of_label(name)]
        self.left_out = {}
        if len(known) < len(labels):
            unknown = ", ".join(name for name in labels if name not in known)
            self.left_out["labeller"] = f"it has no name for {unknown}"
        studies = [prediction.study_id for prediction in predictions]
        texts = [prediction.prediction for prediction in predictions]
        scores: list[Score] = []
        if known:
            read = [named_by_labeller(text, known) for text in texts]
            expected = [set(names) & set(known) for names in truth]
            scores += label_scores("labeller", read, expected, known, SIGNATURE, studies)
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
    key = name.lower().replace(" ", "_")
    return frozenset({key}) if key in FINDINGS else _findings_said(name)


@lru_cache(maxsize=512)
def _findings_said(name: str) -> frozenset[str]:
    """Return the findings that the labeller reads in a sentence with the label's name."""
    noun = load_wording().name(name).noun
    for text in (name.replace("_", " "), noun):
        found = {n for n, v in read_findings(f"There is {text}.").items() if v == "positive"}
        found.discard("no_finding")
        if found:
            return frozenset(found)
    return frozenset()


def named_by_labeller(text: str, labels: Sequence[str]) -> set[str]:
    """Return the labels that a text affirms or suspects, as the rule-based labeller reads it.

    Where the labeller knows only a wider finding, which another label has as well (a pacemaker and
    a catheter are both support devices), the name must occur, too.
    """
    found = positive_findings(text)
    said = set(names_in(text, spelled_names(labels)))
    return {
        name
        for name in labels
        if findings_of_label(name) & found and (name in said or not _is_shared(name, labels))
    }


def _is_shared(name: str, labels: Sequence[str]) -> bool:
    """Check whether another label is read as the same finding, and this one is not its name."""
    if name.lower().replace(" ", "_") in FINDINGS:
        return False
    own = _findings_said(name)
    return any(other != name and own & _findings_said(other) for other in labels)
