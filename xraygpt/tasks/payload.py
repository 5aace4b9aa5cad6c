"""Answers and predictions with their boxes, masks, numbers and probabilities."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from PIL import Image

from xraygpt.common.errors import DataError

_ROW_FIELDS = ("findings", "probabilities")  # of the payload, stored as fields of the line


class LabelledBox(TypedDict):
    """A box on an image, predicted or ground truth."""

    label: str
    box: list[float]  # x0, y0, x1, y1 in [0, 1] of the original image
    image: NotRequired[int]  # index among the sample's media
    score: NotRequired[float]  # in [0, 1]


class Remark(TypedDict):
    """A reason to doubt part of an answer's text."""

    start: int  # index of the part's first character
    end: int  # index after its last character
    text: str


class Payload(TypedDict, total=False):
    """What a prediction contains in addition to text; a task fills only some of the keys."""

    boxes: list[LabelledBox]
    spelling: str  # how the boxes are written in the text, if they were read from it
    image_size: list[int]  # height and width in pixels of the original image, if it was read
    mask: str  # file with the classes (0 is background), relative to the prediction file
    numbers: dict[str, float]  # by a name that includes the unit: {"EDV_ml": 142.0}
    findings: list[str]  # names of the findings that the model decided on
    probabilities: dict[str, float]  # in [0, 1], by finding, or by answer to a yes/no question
    trait_samples: list[dict[str, float]]  # by sampled report: positive traits as 1, numbers
    remarks: list[Remark]  # reasons to doubt sentences of a report
    note: str  # a sentence to show next to the answer


@dataclass(frozen=True)
class Answer:
    """A model's answer for one sample.

    Attributes:
        text: Text for readers and text metrics.
        payload: Everything else except the mask.
        mask: Classes (0 is background), (H, W) or (D, H, W) uint8. The mask is written to a file,
            which the stored payload names.
        prompt: The prompt that the language model was given, if it differs from the question.
        warnings: Reasons to doubt that the model can read the images, one sentence each.
    """

    text: str = ""
    payload: Payload = field(default_factory=Payload)
    mask: np.ndarray | None = None
    prompt: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl.

    In the line, the findings and probabilities of the payload are fields of their own.
    """

    sample_id: str
    study_id: str
    prompt: str
    prediction: str
    reference: str
    seed: int
    meta: dict[str, Any] = field(default_factory=dict)
    payload: Payload = field(default_factory=Payload)
    warnings: list[str] = field(default_factory=list)
    """Reasons to doubt that the model can read the images, one sentence each."""
    folder: Path | None = field(default=None, compare=False, repr=False)
    """Folder of the prediction file; not stored in the line."""

    def as_row(self) -> dict[str, Any]:
        """Return the line as a dict, without the payload if that is empty."""
        row = asdict(self)
        del row["folder"]
        payload = row.pop("payload")
        for key in _ROW_FIELDS:
            if key in payload:
                row[key] = payload.pop(key)
        return {**row, "payload": payload} if payload else row

    @classmethod
    def from_row(cls, row: Mapping[str, Any], folder: Path) -> Prediction:
        """Build a prediction from a line; the inverse of `as_row`.

        Args:
            row: The line as a dict, possibly written by an earlier version.
            folder: Folder of the prediction file.

        Raises:
            TypeError: The line is not a prediction.
        """
        values = dict(row)
        payload = dict(values.pop("payload", None) or {})
        payload |= {key: values.pop(key) for key in _ROW_FIELDS if key in values}
        return cls(**values, payload=cast(Payload, payload), folder=folder)

    def mask(self) -> np.ndarray | None:
        """Return the predicted classes, (H, W) or (D, H, W) uint8, or None without a mask.

        Raises:
            DataError: The mask file is missing or damaged.
        """
        name = self.payload.get("mask")
        return None if name is None else read_mask((self.folder or Path()) / name)


def as_answers(outputs: Sequence[Answer | str]) -> list[Answer]:
    """Convert plain strings to answers, and numpy or torch numbers in payloads to Python's."""
    answers = [Answer(output) if isinstance(output, str) else output for output in outputs]
    return [
        replace(a, payload=cast(Payload, _to_json(a.payload))) if a.payload else a for a in answers
    ]


def _to_json(value: object) -> object:
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    to_list = getattr(value, "tolist", None)  # arrays, numpy scalars, tensors
    return value if to_list is None else to_list()


def save_mask(answer: Answer, folder: Path, name: str, salt: str = "") -> Payload:
    """Write an answer's mask, if any, to a file and return the payload that names it.

    Args:
        answer: Answer with or without a mask.
        folder: Folder of the prediction file.
        name: Id of the sample.
        salt: Text that distinguishes answers for the same sample, e.g. with another study's image.
    """
    if answer.mask is None:
        return answer.payload
    safe_name = re.sub(r"[^\w.-]+", "_", name)[:80]
    file = f"masks/{safe_name}-{hashlib.sha256(f'{name} {salt}'.encode()).hexdigest()[:12]}"
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    array = np.asarray(answer.mask, dtype=np.uint8)
    if array.ndim == 2:
        file += ".png"
        Image.fromarray(array).save(folder / file)
    else:
        file += ".npy"
        np.save(folder / file, array)
    return {**answer.payload, "mask": file}


def read_mask(path: Path | str) -> np.ndarray:
    """Read the classes (uint8) from a mask file: a grey PNG or an integer array (.npy).

    Raises:
        DataError: The file is missing, damaged or not a mask.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                array = np.asarray(image)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the mask cannot be read ({error})") from None
    if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{path}: a mask must be grey with one integer per class; this file is "
            f"{array.dtype} {array.shape}"
        )
    return array.astype(np.uint8)


def prediction_text(prediction: Prediction) -> str:
    """Return the text of a prediction, or a text summary of its payload."""
    if prediction.prediction:
        return prediction.prediction
    payload = prediction.payload
    parts = [f"{name} {value:g}" for name, value in payload.get("numbers", {}).items()]
    parts += [f"P({name}) {p:.2f}" for name, p in payload.get("probabilities", {}).items()]
    parts += [box["label"] for box in payload.get("boxes", [])]
    if "mask" in payload:
        parts.append(f"mask in {payload['mask']}")
    return "; ".join(parts)


def payload_notes(prediction: Prediction) -> list[str]:
    """Return sentences about the predicted findings and the doubtful sentences of a prediction."""
    payload = prediction.payload
    probabilities = payload.get("probabilities", {})
    named = [f"{n.replace('_', ' ')} {probabilities[n]:.0%}" for n in payload.get("findings", ())]
    notes = [f"Predicted from the image: {', '.join(named)}."] if named else []
    notes += [
        f"“{prediction.prediction[remark['start'] : remark['end']]}”: {remark['text']}."
        for remark in payload.get("remarks", ())
    ]
    return [*notes, payload["note"]] if "note" in payload else notes
