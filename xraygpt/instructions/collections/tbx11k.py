"""TBX11K: tuberculosis with boxes, and healthy and otherwise ill people.

Y. Liu et al.: Rethinking computer-aided tuberculosis diagnosis. CVPR 2020.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xraygpt.boxes.units import from_extent
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import ImageRecord, ImageRow, Label, Located, Split
from xraygpt.instructions.tables import Tables, read_json
from xraygpt.media.geometry import Box

ANY = "PulmonaryTuberculosis"
_SPLITS: dict[Split, str] = {"train": "train", "val": "val", "test": "test"}


@COLLECTIONS.register("tbx11k")
class Tbx11k(Collection):
    """COCO files ``annotations/json/TBX11K_{train,val}.json``; images in ``imgs/``.

    The folder of an image says what it shows: ``health``, ``sick`` (ill, but no tuberculosis),
    ``tb``.
    """

    title = "TBX11K"
    folders = ("TBX11K", "tbx11k")
    licence = "TBX11K terms: research"

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings; there are none of its own."""

    config: Config

    def _files(self) -> dict[Split, Path]:
        found: dict[Split, Path] = {}
        for split, name in _SPLITS.items():
            names = (f"annotations/json/TBX11K_{name}.json", f"TBX11K_{name}.json")
            path = self.find(*names, optional=True)
            if path is not None:
                found[split] = path
        if not found:
            self.require("annotations/json/TBX11K_train.json", "TBX11K_train.json")
        return found

    def files(self) -> list[Path]:
        """Return the COCO files that exist."""
        return list(self._files().values())

    def image_folder(self) -> Path:
        """Return the folder ``imgs``."""
        return self.config.images or self.find("imgs", optional=True) or self.root()

    def load(self, tables: Tables) -> None:
        """Load the COCO files.

        Raises:
            DataError: One is no COCO file.
        """
        images: list[tuple[object, ...]] = []
        boxes: list[tuple[object, ...]] = []
        names: set[str] = set()
        for split, path in self._files().items():
            content = read_json(path)
            try:
                categories = {c["id"]: c["name"] for c in content["categories"]}
                files = {}
                for image in content["images"]:
                    file = str(image["file_name"]).replace("\\", "/")
                    files[image["id"]] = file
                    images.append((file, split, image["width"], image["height"]))
                for box in content["annotations"]:
                    boxes.append(
                        (files[box["image_id"]], categories[box["category_id"]], *box["bbox"])
                    )
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path} is no COCO file: {error}") from None
            names |= set(categories.values())
        tables.load_rows("files", ("file", "split", "width", "height"), images)
        tables.load_rows("boxes", ("file", "name", "x", "y", "w", "h"), boxes, key="file")
        tables.load_rows("names", ("name",), sorted((name,) for name in names))
        self.add_images(
            tables,
            "SELECT file, file, file, 'tbx11k/' || file, split, 'FRONTAL', '', width, height FROM "
            "files ORDER BY rowid",
        )
        found = tables.row(
            "SELECT count(*), min(b.file) FROM boxes b JOIN files f USING (file) WHERE w <= 0 OR "
            "h <= 0 OR x < -0.001 * f.width OR y < -0.001 * f.height OR x + w > 1.001 * f.width "
            "OR y + h > 1.001 * f.height"
        )
        count, example = found or (0, "")
        self.remark(tables, "lost", "boxes that are empty or leave their image", count, example)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the boxes by kind of tuberculosis, and what the folder says."""
        boxes: dict[str, list[Box]] = defaultdict(list)
        damaged = False
        sql = "SELECT name, x, y, w, h FROM boxes WHERE file = ? ORDER BY rowid"
        for name, *extent in tables.rows(sql, image.image_id):
            try:
                boxes[name] += [from_extent(extent, image.width or 0, image.height or 0)]
            except DataError:  # counted by `load`
                damaged = True
        findings = tuple(
            Located(name, tuple(found)) for name, found in sorted(boxes.items()) if found
        )
        group = _group(image.path)
        names = [name for (name,) in tables.rows("SELECT name FROM names")]
        known = group in ("health", "sick") or (bool(findings) and not damaged)
        if findings:
            # It means any tuberculosis, or one whose kind is not known: where it is marked, other
            # kinds are not absent, and where another kind is marked, it is not absent.
            unsure = ANY in boxes
            names = [n for n in names if n in boxes or not (unsure or n == ANY)]
        labels: dict[str, Label] = {}
        if known:
            labels = {name: "positive" if name in boxes else "negative" for name in names}
        return ImageRecord(
            image, labels=labels, healthy=group == "health", findings=findings,
            searched=tuple(names) if known else (),
        )  # fmt: skip


def _group(path: str) -> Literal["health", "sick", "tb", ""]:
    """Return what the folder of an image says."""
    for part in Path(path).parts[:-1]:
        if part in ("health", "sick", "tb"):
            return part  # type: ignore[return-value]
    return ""
