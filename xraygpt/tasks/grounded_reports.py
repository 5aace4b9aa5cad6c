"""Reports whose sentences have boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from xraygpt.common.registry import registry
from xraygpt.metrics.box_answers import box_answer_scores
from xraygpt.metrics.radfact import Sentence, grounded_sentences, radfact_scores
from xraygpt.metrics.reports import finding_scores, positive_findings
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.text import rouge_scores
from xraygpt.metrics.verdicts import Kind, Question, read_verdicts, text_key
from xraygpt.models.base import Generation
from xraygpt.tasks.base import Prediction
from xraygpt.tasks.boxes import BoxTask, Written, as_boxes, true_boxes

NO_SIZE = (1000, 1000)  # boxes in pixels are removed from texts also if the size is not known


@registry.register_task("grounded_report")
class GroundedReport(BoxTask):
    """Writes the report as sentences, each followed by its boxes.

    RadFact's scores are computed once ``python -m xraygpt.judge radfact`` has been run.
    """

    page_title = "AI drafts with places"
    default_controls: ClassVar[tuple[str, ...]] = (
        "shuffled",
        "blank",
        "mirrored",
        "no_image",
        "most_common",
    )
    deciding_scores: ClassVar[Mapping[str, str]] = {
        "mean_IoU": "mean overlap of boxes",
        "findings_text_F1": "micro F1 of findings",
    }
    by_label = False
    judges = ("radfact",)

    @dataclass(kw_only=True)
    class Config(BoxTask.Config):
        """Settings of grounded reports."""

        generate: Generation = field(default_factory=lambda: Generation(max_new_tokens=512))
        """How answers are decoded in evaluation."""

    config: Config

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute the overlap of all boxes, the findings and ROUGE of the text, and RadFact."""
        self.left_out = {}
        studies = [p.study_id for p in predictions]
        scores = box_answer_scores(
            [as_boxes(self.predicted(p), False) for p in predictions],
            [as_boxes(true_boxes(p), False) for p in predictions],
            studies,
            by_label=False,
        )
        pairs = [self.sentences(p) for p in predictions]
        texts, references = ([_plain(pair[i]) for pair in pairs] for i in (0, 1))
        scores += rouge_scores(texts, references, studies)
        found, known = ([positive_findings(t) for t in each] for each in (texts, references))
        scores += finding_scores(found, known, "text", studies)
        return [*scores, *self._radfact(predictions, studies)]

    def sentences(self, prediction: Prediction) -> tuple[list[Sentence], list[Sentence]]:
        """Return the sentences of the answer and of the reference."""
        answer, reference = self.written(prediction), self.written_reference(prediction)
        return self._sentences(prediction.prediction, answer), self._sentences(
            prediction.reference, reference
        )

    def _sentences(self, text: str, written: Written) -> list[Sentence]:
        return grounded_sentences(text, written.spelling, self.size_read(written) or NO_SIZE)

    def judge_questions(self, kind: Kind, predictions: Sequence[Prediction]) -> Iterator[Question]:
        """Yield the sentences of each answer and its reference, numbered from 1."""
        for p in predictions:
            yield radfact_question(*self.sentences(p), p.sample_id)

    def _radfact(self, predictions: Sequence[Prediction], studies: Sequence[str]) -> list[Score]:
        folder = predictions[0].folder if predictions else None
        verdicts = read_verdicts(folder, "radfact")
        keys = [radfact_question(*self.sentences(p), "").key for p in predictions]
        known = {} if verdicts is None else verdicts.values
        absent = sum(key not in known for key in keys)
        if verdicts is None or absent:
            self.left_out["RadFact"] = (
                f"{absent} of {len(keys)} reports are not judged; run python -m xraygpt.judge "
                "radfact FOLDER"
            )
            return []
        pairs = [self.sentences(p) for p in predictions]
        scores = radfact_scores(pairs, [known[key] for key in keys], verdicts.judge, studies)
        return [replace(score, optional=True) for score in scores]


def radfact_question(
    candidate: Sequence[Sentence], reference: Sequence[Sentence], name: str
) -> Question:
    """Return what a judge is asked about two lists of sentences, which it sees numbered from 1."""
    sides = {"candidate": candidate, "reference": reference}
    texts = {
        side: "\n".join(f"{i}. {s.text}" for i, s in enumerate(sentences, 1)) or "(no sentence)"
        for side, sentences in sides.items()
    }
    source = json.dumps({side: len(sentences) for side, sentences in sides.items()})
    return Question(text_key("radfact", *texts.values()), texts, name, source)


def _plain(sentences: Sequence[Sentence]) -> str:
    return " ".join(f"{s.text.rstrip('.')}." for s in sentences)
