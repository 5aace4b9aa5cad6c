"""Questions about places: regions, findings, phrases, and all findings of an image, with boxes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from xraygpt.boxes.parsing import FoundBox, parse_boxes
from xraygpt.boxes.spelling import SPELLINGS, Size, SpellingName, qwen_resize, write_boxes
from xraygpt.common.errors import InputError
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.instructions.wording import load_wording
from xraygpt.metrics import radvlm
from xraygpt.metrics.box_answers import box_answer_scores
from xraygpt.metrics.grounding import Boxes, match
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import BaseModel, Generation
from xraygpt.tasks.base import Answer, BaseTask, CaseDisplay, Comparison, Prediction
from xraygpt.tasks.confidence import TokenProbabilities, token_probabilities
from xraygpt.tasks.payload import LabelledBox, Payload, payload_notes, prediction_text

_JOINS = frozenset({"", "and", "&", "with", "also"})  # between boxes of one finding
_DENIED = re.compile(r"\b(?:no|not|without|absence of|free of)\b", re.IGNORECASE)
HIT = 0.5  # overlap from which a box counts as right on the result page


class Written(NamedTuple):
    """How boxes are written in a text.

    Attributes:
        spelling: A key of `SPELLINGS`.
        image_size: Height and width of the original image in pixels, for boxes in pixels.
    """

    spelling: SpellingName
    image_size: Sequence[int] | None = None


class BoxTask(BaseTask):
    """Base of the tasks whose answers are boxes.

    The true boxes are `Sample.meta["boxes"]`, and what is asked for is `Sample.meta["phrase"]`, as
    the builder `instructions` provides them.
    """

    page_title = "places"
    controls: ClassVar[tuple[str, ...]] = (*BaseTask.controls, "mean_box")
    default_controls: ClassVar[tuple[str, ...]] = (
        "shuffled",
        "blank",
        "mirrored",
        "no_image",
        "most_common",
        "mean_box",
    )
    deciding_scores: ClassVar[Mapping[str, str]] = {"mean_IoU": "mean overlap of boxes"}
    by_label: ClassVar[bool] = True
    """Whether average precisions are computed over what is asked for."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of questions about places."""

        generate: Generation = field(default_factory=lambda: Generation(max_new_tokens=256))
        """How answers are decoded in evaluation."""
        boxes: SpellingName | None = None
        """How models write boxes that do not say so themselves (`model.boxes`); null as the corpus
        writes them. Tokens, tags and unmistakable numbers are read in any case; what was read
        otherwise, repaired or dropped is noted with the answer."""
        min_pixels: int = 3136
        """Smallest area of the images that the model reads, for boxes in pixels."""
        max_pixels: int = 12845056
        """Largest area of the images that the model reads, for boxes in pixels."""
        confidence: bool = True
        """Whether to compute the probability of each box's tokens, by which average precisions rank
        boxes. It costs one forward pass for each batch; models that return only texts rank all
        boxes alike."""

    config: Config

    def predict(self, model: BaseModel, prompts: Batch) -> list[Answer]:
        """Answer, and read the boxes of the answers."""
        replies = model.point(prompts, self.config.generate)
        texts = [reply.text for reply in replies]
        probabilities = None
        if self.config.confidence and any(reply.boxes is None for reply in replies):
            probabilities = token_probabilities(model, prompts, texts)
        sizes, metas = self._sizes(prompts), prompts.get("meta") or [{} for _ in replies]
        answers = []
        for i, reply in enumerate(replies):
            if reply.boxes is not None:
                boxes = [LabelledBox(label="", box=list(box)) for box in reply.boxes]
                payload = Payload(boxes=boxes)
                if reply.note:
                    payload["note"] = reply.note
                answers.append(Answer(reply.text, payload))
                continue
            row = None if probabilities is None else probabilities[i]
            corpus = self.config.boxes or _corpus_spelling(metas[i])
            spelling = model.box_spelling(corpus)
            place = Written(spelling, sizes[i] or metas[i].get("image_size"))
            answers.append(Answer(reply.text, self._read(reply.text, place, row)))
        return answers

    def _sizes(self, prompts: Batch) -> list[Sequence[int] | None]:
        """Return the height and width of each row's first image, for boxes in pixels."""
        sizes: list[Sequence[int] | None] = [None] * len(prompts["sample_id"])
        for run, original in zip(prompts["runs"], prompts["originals"], strict=True):
            if original is not None and sizes[run.row] is None:
                sizes[run.row] = (original.height, original.width)
        return sizes

    def size_read(self, written: Written) -> Size | None:
        """Return the size at which a model reads an image, for boxes in pixels; else None."""
        if SPELLINGS[written.spelling].steps is not None or written.image_size is None:
            return None
        height, width = written.image_size
        return qwen_resize(
            height, width, min_pixels=self.config.min_pixels, max_pixels=self.config.max_pixels
        )

    def written(self, prediction: Prediction) -> Written:
        """Return how boxes are written in the text of an answer."""
        payload, corpus = prediction.payload, self.written_reference(prediction)
        spelling = payload.get("spelling") or self.config.boxes or corpus.spelling
        return Written(cast(SpellingName, spelling), payload.get("image_size") or corpus.image_size)

    def written_reference(self, prediction: Prediction) -> Written:
        """Return how boxes are written in the text of the reference."""
        meta = prediction.meta
        return Written(_corpus_spelling(meta, self.config.boxes), meta.get("image_size"))

    def _read(
        self, text: str, written: Written, probabilities: TokenProbabilities | None = None
    ) -> Payload:
        """Return the boxes in an answer, and a note on what was repaired or dropped."""
        spelling, size = written.spelling, self.size_read(written)
        if SPELLINGS[spelling].steps is None and size is None:
            return Payload(boxes=[], note=f"Boxes in {spelling} need the size of the image.")
        parsed = parse_boxes(text, spelling, size)
        boxes = []
        for found in parsed.found:
            box = LabelledBox(label=found.label, box=list(found.box))
            if probabilities is not None:
                box["score"] = round(probabilities.of(found.start, found.end), 6)
            boxes.append(box)
        boxes = self._label(text, parsed.found, boxes)
        payload = Payload(boxes=boxes, spelling=spelling)
        if written.image_size is not None:
            payload["image_size"] = list(written.image_size)
        remarks = [*parsed.repaired, *parsed.dropped]
        if remarks:
            payload["note"] = f"Boxes: {'; '.join(remarks[:3])}."
        return payload

    def _label(
        self, text: str, found: Sequence[FoundBox], boxes: list[LabelledBox]
    ) -> list[LabelledBox]:
        """Name the boxes of an answer, where the answer names them."""
        return boxes

    # ---- Scores ----------------------------------------------------------------------------------

    def predicted(self, prediction: Prediction) -> list[LabelledBox]:
        """Return the boxes of an answer; those of a control are read from its text."""
        payload = prediction.payload
        boxes = payload.get("boxes")
        if boxes is None:
            boxes = self._read(prediction.prediction, self.written(prediction)).get("boxes", [])
        phrase = prediction.meta.get("phrase")
        return [replace_label(box, phrase) for box in boxes] if phrase else list(boxes)

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute scores that do not depend on the order of boxes, and RadVLM's.

        Raises:
            InputError: The predictions are not about places.
        """
        truth = [true_boxes(prediction) for prediction in predictions]
        found = [self.predicted(prediction) for prediction in predictions]
        studies = [prediction.study_id for prediction in predictions]
        scores = box_answer_scores(
            [as_boxes(boxes, self.by_label) for boxes in found],
            [as_boxes(boxes, self.by_label) for boxes in truth],
            studies,
            by_label=self.by_label,
        )
        texts = [self._radvlm_text(p, boxes) for p, boxes in zip(predictions, found, strict=True)]
        arrays = [as_boxes(boxes, False).xyxy for boxes in truth]
        others, self.left_out = radvlm.box_scores(texts, arrays, studies)
        return [*scores, *others]

    def _radvlm_text(self, prediction: Prediction, boxes: Sequence[LabelledBox]) -> str:
        """Return an answer with its boxes as RadVLM writes them."""
        payload = prediction.payload
        is_read = "boxes" not in payload or "spelling" in payload
        if is_read and self.written(prediction).spelling in ("unit", "unit_short"):
            return prediction.prediction
        return ", ".join(write_boxes([box["box"]], "unit") for box in boxes)

    def compare(self, prediction: Prediction) -> Comparison:
        """Return the names of what was found, missed, and pointed at without being there."""
        found = as_boxes(self.predicted(prediction), True)
        truth = as_boxes(true_boxes(prediction), True)
        pairs = [m for m in match(found, truth) if m.iou >= HIT]
        hits, right = {m.reference for m in pairs}, {m.prediction for m in pairs}
        return Comparison(
            agreed=_distinct(truth.labels, hits),
            missed=_distinct(truth.labels, set(range(len(truth.xyxy))) - hits),
            added=_distinct(found.labels, set(range(len(found.xyxy))) - right),
        )

    def display(self, prediction: Prediction) -> CaseDisplay:
        """Return the answer with the predicted and the true boxes."""
        found, truth = self.predicted(prediction), list(prediction.meta.get("boxes") or ())
        overlaps = [m.iou for m in match(as_boxes(found, True), as_boxes(truth, True))]
        notes = payload_notes(prediction)
        if truth:
            total = sum(overlaps) / len(truth)
            notes = [f"Mean overlap with the true boxes (IoU): {total:.2f}.", *notes]
        return CaseDisplay(
            prediction_text(prediction),
            prediction.reference,
            boxes=found,
            reference_boxes=truth,
            notes=notes,
        )


def _corpus_spelling(
    meta: Mapping[str, Any], otherwise: SpellingName | None = None
) -> SpellingName:
    return cast(SpellingName, meta.get("spelling") or otherwise or "thousand")


def replace_label(box: LabelledBox, label: str) -> LabelledBox:
    """Return a box with another label."""
    changed = box.copy()
    changed["label"] = label
    return changed


def true_boxes(prediction: Prediction) -> list[LabelledBox]:
    """Return the true boxes of a question.

    Raises:
        InputError: The corpus does not provide them.
    """
    boxes = prediction.meta.get("boxes")
    if boxes is None:
        raise InputError(
            f"{prediction.sample_id} has no true boxes (meta.boxes); read the corpus with the "
            "builder instructions (docs/radvlm_evaluation.md)"
        )
    return list(boxes)


def as_boxes(boxes: Sequence[LabelledBox], by_label: bool) -> Boxes:
    """Return boxes for scoring.

    Args:
        boxes: The boxes.
        by_label: Whether only boxes with the same label match.
    """
    xyxy = np.array([box["box"] for box in boxes], dtype=float).reshape(-1, 4).clip(0, 1)
    scores = [box.get("score") for box in boxes]
    known = np.array(scores, dtype=float) if scores and None not in scores else None
    return Boxes(xyxy, [box["label"] for box in boxes] if by_label else (), known)


def _distinct(names: Sequence[str], indices: set[int]) -> list[str]:
    return list(dict.fromkeys(names[i] or "a place" for i in sorted(indices)))


@registry.register_task("region_grounding")
class RegionGrounding(BoxTask):
    """Asks where an anatomical region is."""

    @dataclass(kw_only=True)
    class Config(BoxTask.Config):
        """Settings of questions about places."""


@registry.register_task("abnormality_grounding")
class AbnormalityGrounding(BoxTask):
    """Asks where a finding is, also if it is absent."""

    @dataclass(kw_only=True)
    class Config(BoxTask.Config):
        """Settings of questions about places."""


@registry.register_task("phrase_grounding")
class PhraseGrounding(BoxTask):
    """Asks where a sentence of a report is seen."""

    by_label = False

    @dataclass(kw_only=True)
    class Config(BoxTask.Config):
        """Settings of questions about places."""


@registry.register_task("abnormality_detection")
class AbnormalityDetection(BoxTask):
    """Asks for all findings of an image with their boxes."""

    @dataclass(kw_only=True)
    class Config(BoxTask.Config):
        """Settings of questions for all findings."""

    def __init__(self, config: BoxTask.Config) -> None:
        super().__init__(config)
        self.names: dict[str, str] = {}
        """Findings of the corpus by how they are written, in lower case."""

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute the scores of boxes by finding; see `BoxTask.score`."""
        labels = {box["label"] for p in predictions for box in true_boxes(p)}
        self.names = spelled_names(labels)
        return super().score(predictions)

    def predicted(self, prediction: Prediction) -> list[LabelledBox]:
        """Return the boxes of an answer, one for each finding that is named with a box."""
        boxes = super().predicted(prediction)
        known = prediction.meta.get("boxes") or ()
        spelled = self.names or spelled_names({box["label"] for box in known})
        if not spelled:  # nothing is known of the image, as in prediction
            return boxes
        named: list[LabelledBox] = []
        names = [""]
        for box in boxes:
            words = box["label"]
            if words.lower() not in _JOINS:  # otherwise it has the finding of the box before it
                names = names_in(affirmed(words), spelled) or [words]
            named += [replace_label(box, name) for name in names]
        return named

    def _label(
        self, text: str, found: Sequence[FoundBox], boxes: list[LabelledBox]
    ) -> list[LabelledBox]:
        """Label boxes with the words before them, in which `predicted` finds the finding.

        A box without words of its own, as after "and", has the finding of the box before it.
        """
        labelled, end = [], 0
        for place, box in zip(found, boxes, strict=True):
            words = box["label"] or " ".join(text[end : place.start].split()).strip(" ,;:.-")
            labelled.append(replace_label(box, words))
            end = place.end
        return labelled


def affirmed(words: str) -> str:
    """Return the part of the words before a box that says what it shows.

    That is the last sentence, without what it denies.
    """
    clause = re.split(r"[.;:!?\n]", words.strip(" .;:!?\n"))[-1]
    return ",".join(part for part in clause.split(",") if not _DENIED.search(part))


def spelled_names(labels: Iterable[str]) -> dict[str, str]:
    """Return labels by their names in sentences, in lower case: singular, plural, as they are."""
    wording, names = load_wording(), dict[str, str]()
    for label in sorted(labels):
        name = wording.name(label)
        for text in (label.replace("_", " "), name.noun, name.several):
            if text:
                names.setdefault(text.lower(), label)
    return names


def names_in(text: str, names: Mapping[str, str]) -> list[str]:
    """Return the labels that a text names; a name within a longer one does not count.

    Args:
        text: Part of an answer.
        names: Result of `spelled_names`.
    """
    if not names:
        return []
    options = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    found = re.finditer(rf"(?<!\w)(?:{options})(?!\w)", text.replace("_", " ").lower())
    return list(dict.fromkeys(names[match[0]] for match in found))
