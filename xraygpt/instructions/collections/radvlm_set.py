"""A finished instruction set in RadVLM's or LLaVA's form, as a part of another one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xraygpt.common.checks import Checks
from xraygpt.common.json_stream import iter_records
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import SPLITS, ImageRecord, ImageRow, Label, Split
from xraygpt.instructions.stored_texts import pair_turns
from xraygpt.instructions.tables import Tables

_COLUMNS = ("id", "image", "patient", "turns", "labels", "pathologies")
# How the paths of collections name the patient, and the prefix of its id in this project.
_PATIENTS = (
    (re.compile(r"(?:^|/)p\d{2}/p(\d{8})/s\d+/"), "mimic/"),
    (re.compile(r"(?:^|/)(patient\d{5,6})/study\d+/"), "chexpert/"),
    (re.compile(r"(?:^|/)([0-9a-f]{32})\.\w+$"), "vindr/"),
)


@COLLECTIONS.register("radvlm_set")
class RadVLMSet(Collection):
    """``all_train.json``: a list of image, conversations and id, perhaps labels and pathologies.

    Patients are read from image paths of MIMIC-CXR, CheXpert and VinDr-CXR; any other image counts
    as its own patient.
    """

    title = "RadVLM instruction set"
    folders = ("radvlm-instruction-dataset", "RadVLM", "llava_datasets")
    licence = "PhysioNet Credentialed Health Data License 1.5.0"
    credentialed = True

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            file: Its name below the root.
            split: The split of all its items.
        """

        file: str = "all_train.json"
        split: Split = "train"

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.refuse(self.split not in SPLITS, "split", f"must be one of {SPLITS}")

    config: Config

    def files(self) -> list[Path]:
        """Return the file."""
        return [self.require(self.config.file)]

    def load(self, tables: Tables) -> None:
        """Load the items, one after the other."""
        problems: list[str] = []
        repeated: list[str] = []
        tables.load_rows("items", _COLUMNS, self._read(problems, repeated), key="id")
        text = "items whose turns do not alternate between human and gpt, or without an image"
        self.remark(tables, "lost", text, len(problems), problems[0] if problems else "")
        text = "items whose id another item has, which were numbered"
        self.remark(tables, "repaired", text, len(repeated), repeated[0] if repeated else "")
        count, example = tables.row(
            "SELECT count(DISTINCT image), min(image) FROM items WHERE patient LIKE 'radvlm_set/%'"
        ) or (0, "")
        text = "images whose path does not name a patient, so that overlaps cannot be seen"
        self.remark(tables, "missing", text, count, example)
        self.add_images(
            tables,
            "SELECT id, image, image, patient, ?, '', '', NULL, NULL FROM items ORDER BY rowid",
            self.config.split,
        )

    def _read(self, problems: list[str], repeated: list[str]) -> Iterator[tuple[Any, ...]]:
        seen: Counter[str] = Counter()
        for number, row in iter_records(self.files()[0]):
            pairs = pair_turns(row.get("conversations")) if isinstance(row, dict) else None
            if pairs is None or not isinstance(row.get("image"), str):
                problems.append(f"item {number}")
                continue
            name = str(row.get("id", number))
            seen[name] += 1
            if seen[name] > 1:
                repeated.append(name)
                while (numbered := f"{name}#{seen[name]}") in seen:
                    seen[name] += 1
                seen[numbered] += 1
                name = numbered
            yield (
                name, row["image"], patient_of(row["image"]),
                json.dumps(pairs, ensure_ascii=False), json.dumps(row.get("labels")),
                json.dumps(row.get("pathologies")),
            )  # fmt: skip

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the conversation under the kind ``stored``, and the labels."""
        sql = "SELECT turns, labels, pathologies FROM items WHERE id = ?"
        turns, labels, pathologies = tables.row(sql, image.image_id) or ("[]", "null", "null")
        positive = json.loads(labels) or []
        known = json.loads(pathologies) or positive
        values: dict[str, Label] = {
            name: "positive" if name in positive else "negative" for name in known
        }
        pairs = tuple((question, answer) for question, answer in json.loads(turns))
        return ImageRecord(image, labels=values, conversations={"stored": pairs})


def patient_of(image: str) -> str:
    """Return the patient of an image path, such as ``mimic/10000032``.

    A path that names no patient gives ``radvlm_set/<path>``.
    """
    path = image.replace("\\", "/")
    for pattern, prefix in _PATIENTS:
        found = pattern.search(path)
        if found:
            return prefix + found[1]
    return f"radvlm_set/{PurePosixPath(path)}"
