"""What an answer holds beside text, or in its place, and how a file of predictions keeps it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from PIL import Image

from xraygpt.common.errors import DataError


class FoundBox(TypedDict):
    """One box on a picture."""

    label: str
    box: list[float]  # x0, y0, x1, y1 in [0, 1] of the original picture
    image: NotRequired[int]  # which of the sample's media, from 0
    score: NotRequired[float]  # in [0, 1]


class Payload(TypedDict, total=False):
    """What a line of predictions holds beside text; a key is there where a task gives it."""

    boxes: list[FoundBox]
    mask: str  # file of classes, 0 is background; relative to the file of predictions
    numbers: dict[str, float]  # by name with its unit: {"EDV_ml": 142.0}
    probabilities: dict[str, float]  # in [0, 1]


@dataclass(frozen=True)
class Answer:
    """What a model says of one sample.

    Attributes:
        text: In words; what people read, and what text scores are taken of.
        payload: What there is beside it, but the mask.
        mask: Classes, 0 is background: (H, W) or (D, H, W) uint8. Whoever keeps the answer writes
            it to a file and names that in the payload.
    """

    text: str = ""
    payload: Payload = field(default_factory=Payload)
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl."""

    sample_id: str
    study_id: str
    prompt: str
    prediction: str
    reference: str
    seed: int
    meta: dict[str, Any] = field(default_factory=dict)
    payload: Payload = field(default_factory=Payload)
    folder: Path | None = field(default=None, compare=False, repr=False)
    """Where the file of predictions lies; not part of a line."""

    def as_row(self) -> dict[str, object]:
        """The line as a dict; an empty payload is left out."""
        row = asdict(self)
        del row["folder"]
        if not row["payload"]:
            del row["payload"]
        return row

    def mask(self) -> np.ndarray | None:
        """The classes that were predicted, (H, W) or (D, H, W) uint8; None without a mask.

        Raises:
            DataError: The file is gone or damaged.
        """
        name = self.payload.get("mask")
        return None if name is None else read_mask((self.folder or Path()) / name)


def answers_of(said: Sequence[Answer | str]) -> list[Answer]:
    """Answers of a task that may give plain texts."""
    answers = [Answer(one) if isinstance(one, str) else one for one in said]
    return [
        replace(a, payload=cast(Payload, _plain(a.payload))) if a.payload else a for a in answers
    ]


def _plain(value: object) -> object:
    """Numbers of numpy and torch as Python's own, as JSON takes them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    own = getattr(value, "tolist", None)  # arrays, their scalars, tensors
    return value if own is None else own()


def keep_mask(answer: Answer, folder: Path, name: str, salt: str = "") -> Payload:
    """The payload of an answer, whose mask is written beside the predictions.

    Args:
        answer: With or without a mask.
        folder: Of the file of predictions.
        name: Of the sample.
        salt: What tells answers to the same sample apart, such as another study's image.
    """
    if answer.mask is None:
        return answer.payload
    plain = re.sub(r"[^\w.-]+", "_", name)[:80]
    file = f"masks/{plain}-{hashlib.sha256(f'{name} {salt}'.encode()).hexdigest()[:12]}"
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
    """Classes of a mask file: a grey PNG, or an array of whole numbers.

    Raises:
        DataError: It is gone, damaged or something else.
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
            f"{path}: a mask is grey, with a whole number for each class; this is "
            f"{array.dtype} {array.shape}"
        )
    return array.astype(np.uint8)


def in_words(prediction: Prediction) -> str:
    """A prediction for people: its text, else what its payload holds."""
    if prediction.prediction:
        return prediction.prediction
    payload = prediction.payload
    parts = [f"{name} {value:g}" for name, value in payload.get("numbers", {}).items()]
    parts += [f"P({name}) {p:.2f}" for name, p in payload.get("probabilities", {}).items()]
    parts += [box["label"] for box in payload.get("boxes", [])]
    if "mask" in payload:
        parts.append(f"mask in {payload['mask']}")
    return "; ".join(parts)
