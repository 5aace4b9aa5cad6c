"""SIIM-ACR pneumothorax segmentation: outlines as run lengths, of which boxes are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xraygpt.boxes.units import from_corners
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection, first_suffix
from xraygpt.instructions.records import ImageRecord, ImageRow, Label, Located
from xraygpt.instructions.tables import Tables
from xraygpt.media.geometry import Box

PNEUMOTHORAX = "Pneumothorax"
_SIDE = 1024  # pixels


@COLLECTIONS.register("siim")
class Siim(Collection):
    """``train-rle.csv``: one row for each outline; ``-1`` means no pneumothorax.

    An image has one row for each outline, and counts once. Outlines that overlap are joined.
    """

    title = "SIIM-ACR pneumothorax segmentation"
    folders = ("SIIM", "siim", "siim-acr-pneumothorax-segmentation")
    licence = "SIIM-ACR challenge terms: research and education"

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            table: Table of run lengths; None looks for the usual names below the root.
            min_pixels: Parts of an outline with fewer pixels get no box of their own, unless the
                image has no larger part.
        """

        table: Path | None = None
        min_pixels: int = 30

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(1, "min_pixels")

    config: Config

    def files(self) -> list[Path]:
        """Return the table of run lengths."""
        names = ("train-rle.csv", "siim-pneumothorax-train-rle.csv")
        return [self.config.table or self.require(*(f"{n}{e}" for n in names for e in ("", ".gz")))]

    def image_folder(self) -> Path:
        """Return the folder of the DICOM or converted files."""
        if self.config.images is None and self.config.root is None and self.config.table:
            return self.config.table.parent
        return super().image_folder()

    def load(self, tables: Tables) -> None:
        """Load the outlines."""
        tables.load_csv("outlines", self.files()[0], ("ImageId", "EncodedPixels"), key="ImageId")
        suffix = first_suffix(self.image_folder()) or ".dcm"
        self.add_images(
            tables,
            f"SELECT ImageId, ImageId || '{suffix}', ImageId, 'siim/' || ImageId, 'train', "
            f"'FRONTAL', '', {_SIDE}, {_SIDE} FROM outlines GROUP BY ImageId ORDER BY min(rowid)",
        )
        rows, images = tables.row("SELECT count(*), count(DISTINCT ImageId) FROM outlines") or (
            0,
            0,
        )
        text = "rows that are further outlines of an image"
        self.remark(tables, "note", text, rows - images)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return one box for each connected part of the union of the outlines.

        Raises:
            DataError: Run lengths are damaged.
        """
        sql = "SELECT EncodedPixels FROM outlines WHERE ImageId = ? ORDER BY rowid"
        codes = [code for (code,) in tables.rows(sql, image.image_id) if code not in (None, "-1")]
        try:
            boxes = boxes_of(union(codes), self.config.min_pixels) if codes else []
        except ValueError as error:
            raise DataError(f"{self.name}, image {image.image_id}: {error}") from None
        labels: dict[str, Label] = {PNEUMOTHORAX: "positive" if boxes else "negative"}
        findings = (Located(PNEUMOTHORAX, tuple(boxes)),) if boxes else ()
        return ImageRecord(image, labels=labels, findings=findings, searched=(PNEUMOTHORAX,))


def union(codes: Sequence[str], side: int = _SIDE) -> np.ndarray:
    """Return the union of outlines as a mask, bool (side, side).

    Args:
        codes: Pairs "gap length": pixels to skip since the end of the last run, and pixels of the
            run, counted column by column from the upper left corner.
        side: Height and width in pixels.

    Raises:
        ValueError: A code has an odd number of numbers, or leaves the image.
    """
    mask = np.zeros(side * side, dtype=bool)
    for code in codes:
        numbers = [int(number) for number in code.split()]
        if len(numbers) % 2:
            raise ValueError("run lengths with an odd number of numbers")
        position = 0
        for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
            position += gap
            if position < 0 or length < 0 or position + length > mask.size:
                raise ValueError("run lengths that leave the image")
            mask[position : position + length] = True
            position += length
    return mask.reshape(side, side).T


def boxes_of(mask: np.ndarray, min_pixels: int = 1) -> list[Box]:
    """Return the normalised box of each connected part of a mask, from the left.

    Args:
        mask: bool (H, W).
        min_pixels: Smaller parts are left out, unless there are only such.
    """
    from scipy import ndimage

    labelled, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    limit = min(min_pixels, int(areas.max(initial=0)))
    height, width = mask.shape
    boxes = []
    for area, (rows, columns) in zip(areas, ndimage.find_objects(labelled), strict=True):
        if area >= limit:
            corners = (columns.start, rows.start, columns.stop, rows.stop)
            boxes.append(from_corners(corners, width, height))
    return sorted(boxes)
