"""The regions of an ultrasound image according to its DICOM header (PS3.3 C.8.5.5).

A region is a rectangle of the picture with its own content and scale: a sector, a Doppler spectrum,
an ECG trace, a colour bar. Scanners and converters that change the size of the picture sometimes
leave the table as it was. Such a table says where nothing is, and its centimetres per pixel are
wrong, so every region is checked against the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xraygpt.media.dicom_header import numbers

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SPATIAL_FORMATS = {  # C.8.5.5.1.1
    0: "none", 1: "2D", 2: "M-mode", 3: "spectral", 4: "waveform", 5: "graphics",
}  # fmt: skip
DATA_TYPES = {  # C.8.5.5.1.2
    0x0: "none", 0x1: "tissue", 0x2: "colour flow", 0x3: "PW spectral Doppler",
    0x4: "CW spectral Doppler", 0x5: "Doppler mean trace", 0x6: "Doppler mode trace",
    0x7: "Doppler maximum trace", 0x8: "volume trace", 0x9: "d(volume)/dt trace",
    0xA: "ECG trace", 0xB: "pulse trace",
    0xC: "phonocardiogram trace", 0xD: "grey bar", 0xE: "colour bar",
    0xF: "integrated backscatter", 0x10: "area trace", 0x11: "d(area)/dt",
    0x12: "other physiological trace",
}  # fmt: skip
UNITS = {  # C.8.5.5.1.15
    0: "none", 1: "percent", 2: "dB", 3: "cm", 4: "s", 5: "Hz", 6: "dB/s", 7: "cm/s", 8: "cm²",
    9: "cm²/s", 0xA: "cm³", 0xB: "cm³/s", 0xC: "degrees",
}  # fmt: skip
_ELEMENTS = (
    *("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1"),
    *("RegionSpatialFormat", "RegionDataType", "PhysicalUnitsXDirection"),
    "PhysicalUnitsYDirection",
)
_CM_PER_PIXEL = (0.0005, 0.5)  # plausible: 5 µm to 5 mm
_DEPTH_CM = (0.2, 50.0)  # plausible height of a 2D region


@dataclass(frozen=True)
class Region:
    """One region that fits the image.

    Attributes:
        box: (x0, y0, x1, y1) in pixels; x1 and y1 are the first column and row outside.
        spatial_format: Value of `SPATIAL_FORMATS`.
        data_type: Value of `DATA_TYPES`.
        units: Values of `UNITS` for the horizontal and the vertical direction.
        deltas: Physical size of a pixel in these units, horizontally and vertically; None if it is
            not stated.
    """

    box: tuple[int, int, int, int]
    spatial_format: str
    data_type: str
    units: tuple[str, str]
    deltas: tuple[float, float] | None

    @property
    def is_sector(self) -> bool:
        """Whether the region is a 2D picture of tissue or flow."""
        return self.spatial_format == "2D" and self.data_type in (
            "tissue", "colour flow", "integrated backscatter",
        )  # fmt: skip

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """(row, column) spacing in mm of a 2D region with plausible centimetres per pixel."""
        if self.spatial_format != "2D" or self.units != ("cm", "cm") or self.deltas is None:
            return None
        low, high = _CM_PER_PIXEL
        across, down = (abs(delta) for delta in self.deltas)
        if not (low <= across <= high and low <= down <= high):
            return None
        return round(10 * down, 6), round(10 * across, 6)

    @property
    def depth_cm(self) -> float | None:
        """Height of a 2D region in cm, which is about the depth of the scan."""
        if self.spacing_mm is None:
            return None
        depth = (self.box[3] - self.box[1]) * self.spacing_mm[0] / 10
        return round(depth, 3) if _DEPTH_CM[0] <= depth <= _DEPTH_CM[1] else None

    def __str__(self) -> str:
        """Return the region in words, such as "2D tissue at x 84 to 595, y 31 to 414"."""
        x0, y0, x1, y1 = self.box
        return f"{self.spatial_format} {self.data_type} at x {x0} to {x1 - 1}, y {y0} to {y1 - 1}"


@dataclass(frozen=True)
class RegionTable:
    """The regions of an image.

    Attributes:
        regions: Those that fit the image.
        refused: What each of the others says, and why it is refused, one sentence each.
    """

    regions: tuple[Region, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def sectors(self) -> tuple[Region, ...]:
        """The regions with a 2D picture; none if any region was refused.

        If one region does not fit the image, the table was made for another size of picture, and
        the others are not to be trusted either.
        """
        return () if self.refused else tuple(r for r in self.regions if r.is_sector)

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """(row, column) spacing in mm if all sectors have the same one."""
        found = {region.spacing_mm for region in self.sectors}
        return found.pop() if len(found) == 1 else None

    @property
    def depth_cm(self) -> float | None:
        """Depth in cm if all sectors have the same one."""
        found = {region.depth_cm for region in self.sectors}
        return found.pop() if len(found) == 1 else None


def read_regions(dataset: Dataset, rows: int, columns: int) -> RegionTable:
    """Return the regions of an image, checked against its size.

    Args:
        dataset: The header.
        rows: Height of the image in pixels.
        columns: Width of the image in pixels.
    """
    regions, refused = list[Region](), list[str]()
    for number, item in enumerate(dataset.get("SequenceOfUltrasoundRegions") or [], start=1):
        missing = [name for name in _ELEMENTS if len(numbers(item, name)) != 1]
        if missing:
            names = ", ".join(missing)
            refused.append(f"region {number} of the header lacks {names}; the table is not used")
            continue
        region = _parse(item)
        problem = _misfit(region.box, rows, columns)
        if problem:
            refused.append(
                f"region {number} of the header says {region}, but {problem}; no size in "
                "centimetres is taken from this table"
            )
        else:
            x0, y0, x1, y1 = region.box
            box = (x0, y0, min(x1, columns), min(y1, rows))
            regions.append(Region(box, *_content(item)))
    return RegionTable(tuple(regions), tuple(refused))


def _parse(item: Dataset) -> Region:
    x0, y0, x1, y1 = (int(numbers(item, name)[0]) for name in _ELEMENTS[:4])
    return Region((x0, y0, x1 + 1, y1 + 1), *_content(item))  # the standard's corners are inside


def _content(item: Dataset) -> tuple[str, str, tuple[str, str], tuple[float, float] | None]:
    form, data, across, down = (int(numbers(item, name)[0]) for name in _ELEMENTS[4:])
    deltas = [numbers(item, f"PhysicalDelta{axis}") for axis in "XY"]
    known = all(len(delta) == 1 and delta[0] != 0 for delta in deltas)
    return (
        SPATIAL_FORMATS.get(form, f"unknown format {form}"),
        DATA_TYPES.get(data, f"unknown type {data}"),
        (UNITS.get(across, "unknown"), UNITS.get(down, "unknown")),
        (deltas[0][0], deltas[1][0]) if known else None,
    )


def _misfit(box: Sequence[int], rows: int, columns: int) -> str:
    """Return why a box does not fit the image; empty if it does.

    Some scanners write the size of the picture as the last corner, one pixel too far.
    """
    x0, y0, x1, y1 = box
    if x1 - x0 < 2 or y1 - y0 < 2:
        return "that is empty"
    if x0 < 0 or y0 < 0 or x1 > columns + 1 or y1 > rows + 1:
        return f"the image has only {columns} columns and {rows} rows"
    return ""
