"""A made-up collection, whose records are lines of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from xraygpt.common.config import load
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import ImageRecord, ImageRow, Located
from xraygpt.instructions.settings import InstructionSet
from xraygpt.instructions.tables import Tables
from xraygpt.jobs.instructions import Writer


@COLLECTIONS.register("toy")
class Toy(Collection):
    """``rows.jsonl``: one image per line."""

    title = "SYNTHETIC toy"
    folders = ("TOY",)

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings."""

    config: Config

    def files(self) -> list[Path]:
        return [self.require("rows.jsonl")]

    def load(self, tables: Tables) -> None:
        rows = [json.loads(line) for line in self.files()[0].read_text().splitlines()]
        tables.load_rows(
            "rows", ("id", "patient", "split", "view", "content"),
            [(r["id"], r["patient"], r["split"], r.get("view", "PA"), json.dumps(r)) for r in rows],
            key="id",
        )  # fmt: skip
        self.add_images(
            tables,
            "SELECT id, id || '.png', 's' || id, patient, split, view, 'F', 1000, 800 FROM rows "
            "ORDER BY rowid",
        )

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        row = json.loads(tables.value("SELECT content FROM rows WHERE id = ?", image.image_id))
        return ImageRecord(
            image,
            report=row.get("report", ""),
            labels=row.get("labels", {}),
            healthy=row.get("healthy", False),
            regions=located(row.get("regions", {})),
            findings=located(row.get("findings", {})),
            searched=tuple(row.get("searched", ())),
            complete=bool(row.get("searched")),
            phrases=located(row.get("phrases", {})),
            conversations={
                kind: tuple(map(tuple, turns))
                for kind, turns in row.get("conversations", {}).items()
            },
        )


def located(rows: dict) -> tuple[Located, ...]:
    return tuple(Located(text, tuple(map(tuple, boxes))) for text, boxes in rows.items())


def toy_rows(count: int = 12) -> list[dict]:
    """Return rows with everything; every fifth image is healthy, and two images per patient."""
    box, other = [0.1, 0.2, 0.3, 0.4], [0.55, 0.2, 0.75, 0.4]
    rows = []
    for i in range(count):
        healthy = i % 5 == 4
        rows.append(
            {
                "id": f"i{i:04d}",
                "patient": f"toy/{i // 2}",
                "split": "test" if i % 6 == 5 and i // 2 % 3 == 2 else "train",
                "view": "LATERAL" if i % 7 == 4 else "PA",
                "report": f"Report {i}.\nThe heart\nis normal." if i % 3 else "",
                "labels": {
                    "Edema": "negative" if healthy else ("positive" if i % 2 else "uncertain"),
                    "Cardiomegaly": "negative" if healthy or i % 2 else "positive",
                },
                "healthy": healthy,
                "regions": {"right lung": [box], "left hilar structures": [other]},
                "findings": {} if healthy else {"Nodule/Mass": [box, other], "ILD": [box]},
                "searched": ["Nodule/Mass", "ILD", "Pneumothorax"],
                "phrases": {"A nodule is seen.": [box], "No effusion.": []},
                "conversations": {
                    "standard": [["What is this?", "A chest X-ray."], ["Of whom?", "Unknown."]],
                    "grounding": [["Where is it?", "At [0.10, 0.20, 0.30, 0.40], I think."]],
                },
            }
        )
    return rows


def write_toy(folder: Path, rows: list[dict] | None = None, images: bool = True) -> Path:
    """Write the collection and return its folder."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows = toy_rows() if rows is None else rows
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if images:
        for row in rows:
            Image.new("L", (10, 8), 90).save(folder / f"{row['id']}.png")
    return folder


MIXTURE = """
  - {collection: toy, task: report}
  - {collection: toy, task: classification}
  - {collection: toy, task: region_grounding, per_image: 1}
  - {collection: toy, task: abnormality_grounding, negatives: 0.5, repeats: 2}
  - {collection: toy, task: detection}
  - {collection: toy, task: phrase_grounding, negatives: 1}
  - {collection: toy, task: grounded_report}
  - {collection: toy, task: conversation}
  - {collection: toy, task: grounded_conversation, repeats: 2}
"""


def write_yaml(path: Path, root: Path, mixture: str = MIXTURE, output: str = "") -> Path:
    """Write the YAML file of an instruction set."""
    path.write_text(
        f"imports: [tests.instructions.toy]\n"
        f"collections:\n  toy: {{collection: toy, root: {root}}}\n"
        f"mixture:{mixture}output: {{{output}}}\n"
    )
    return path


def toy_writer(folder: Path, mixture: str = MIXTURE, output: str = "", **options) -> Writer:
    """Return the writer of a toy instruction set in a folder."""
    if not (folder / "TOY" / "rows.jsonl").is_file():
        write_toy(folder / "TOY")
    yaml = write_yaml(folder / "set.yaml", folder / "TOY", mixture, output)
    return Writer(load(InstructionSet, yaml), folder / options.pop("out", "out"), workers=1)
