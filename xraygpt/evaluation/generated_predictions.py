"""LLaMA-Factory's file of predictions, with the ids and media that its own lacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.datasets.base import StudyDataset
from xraygpt.evaluation.conditions import TRUE
from xraygpt.prompting.renderer import Turn
from xraygpt.tasks.base import Prediction

GENERATED = "generated_predictions.jsonl"


class GeneratedPredictions:
    """Writes `generated_predictions.jsonl` while samples are answered; see `AnswerListener`.

    Each line has LLaMA-Factory's `prompt`, `predict` and `label`, and in addition `sample_id`,
    `study_id`, `images` and `videos`. In `prompt`, a mark stands for the tokens of each medium.

    Args:
        folder: The folder of the file.
        render: Writes the turns before an answer as text.
    """

    def __init__(self, folder: Path, render: Callable[[Sequence[Turn]], str]) -> None:
        self.path, self.render = folder / GENERATED, render
        self._index: dict[str, int] = {}
        self._data: StudyDataset | None = None

    def begin(self, condition: str, data: StudyDataset, done: Mapping[str, Prediction]) -> None:
        """Write the answers that an earlier command left."""
        if condition != TRUE:
            return
        self._data = data
        self._index = {record.sample_id: i for i, record in enumerate(data.records)}
        self.end(condition, [p for name, p in done.items() if name in self._index])

    def add(self, condition: str, prediction: Prediction) -> None:
        """Append one answer."""
        if condition == TRUE:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(prediction))

    def end(self, condition: str, predictions: Sequence[Prediction]) -> None:
        """Write all answers in the order of the samples."""
        if condition == TRUE:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.path, "".join(self._line(p) for p in predictions))

    def _line(self, prediction: Prediction) -> str:
        assert self._data is not None
        index = self._index[prediction.sample_id]
        turns, media = self._data.get_turns(index), self._data.records[index].media
        last = max((i for i, t in enumerate(turns) if t["role"] == "assistant"), default=len(turns))
        row: dict[str, Any] = {
            "prompt": self.render(turns[:last]),
            "predict": prediction.prediction,
            "label": prediction.reference,
            "sample_id": prediction.sample_id,
            "study_id": prediction.study_id,
            "images": [ref.file for ref in media if ref.kind == "image"],
            "videos": [ref.file for ref in media if ref.kind == "clip"],
        }
        return json.dumps(row, ensure_ascii=False) + "\n"
