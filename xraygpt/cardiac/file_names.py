"""What the name of an image file says: the series, the phase, the slice, and whether it is a mask.

Files of one series differ in these parts of their names alone, such as `patient001_frame01.nii.gz`
and `patient001_frame12_gt.nii.gz`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = re.compile(r"(?:\.nii\.gz|\.nii|\.hdf5|\.h5|\.png|\.dcm)$", re.IGNORECASE)
_START, _END = r"(?:^|[_\-. ])", r"(?=$|[_\-. ])"
_MASK = re.compile(rf"{_START}(?:gt|masks?|seg|segmentation|labels?){_END}", re.IGNORECASE)
_WHOLE = re.compile(rf"{_START}(?:4d|cine|0000){_END}", re.IGNORECASE)
_PHASE = re.compile(
    rf"{_START}(?:frame|phase|time|fr|ph|t(?=\d\d))[_\-]?(\d+){_END}", re.IGNORECASE
)
_EXTREME = re.compile(rf"{_START}(ed|es){_END}", re.IGNORECASE)
_SLICE = re.compile(rf"{_START}(?:slice|sl|z|s)[_\-]?(\d+){_END}", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"^(.*?)[_\-. ]*(\d+)$")
_SUNNYBROOK = re.compile(r"^(SC-[A-Z\-]+-\d+)-IM-\d+-(\d+)$")
_SUNNYBROOK_PHASES = 20
_ACDC = re.compile(r"^patient\d{3}(?=$|[_\-])")


@dataclass(frozen=True)
class FileName:
    """The parts of a file's name.

    Attributes:
        series: What the files of a series have in common; empty if that is nothing.
        phase: A number as in the name, "ED", "ES", or empty.
        slice: A number as in the name; None without one.
        is_mask: Whether the file has label maps.
    """

    series: str
    phase: str = ""
    slice: int | None = None
    is_mask: bool = False

    @property
    def phase_order(self) -> int:
        """Sort key of the phase: end diastole precedes end systole."""
        return int(self.phase) if self.phase.isdigit() else int(self.phase == "ES")


def stem(file: Path) -> str:
    """Return the name of a file without its extensions, such as `.nii.gz` or `.dcm.png`."""
    name = file.name
    while _SUFFIX.search(name):
        name = _SUFFIX.sub("", name)
    return name


def parse_name(file: Path) -> FileName:
    """Parse the name of a file with a volume or a slice."""
    name = stem(file)
    sunnybrook = _SUNNYBROOK.match(name)
    if sunnybrook:  # images are numbered through, 20 phases of each slice in turn
        slice_, phase = divmod(int(sunnybrook[2]) - 1, _SUNNYBROOK_PHASES)
        return FileName(sunnybrook[1], str(phase + 1), slice_ + 1)
    name, is_mask = _take(_MASK, name)
    name, _ = _take(_WHOLE, name)
    name, phase_ = _take(_PHASE, name)
    name, extreme = _take(_EXTREME, name)
    rest, slice_text = _take(_SLICE, name)
    phase_text = str(int(phase_)) if phase_ else (extreme or "").upper()
    number = int(slice_text) if slice_text else None
    return FileName(rest.strip("_-. "), phase_text, number, is_mask is not None)


def parse_slice_name(file: Path) -> FileName:
    """Parse the name of a file with one slice: a number at its end is the slice's, if no other is.

    Numbers are compared as numbers, so that slice 10 follows slice 9.
    """
    found = parse_name(file)
    last = _LAST_NUMBER.match(found.series)
    if found.slice is None and last:
        return FileName(last[1], found.phase, int(last[2]), found.is_mask)
    return found


def convention_of(files: list[Path]) -> str:
    """Return the label convention of a collection whose files have such names; empty if unknown."""
    names = [stem(file) for file in files]
    if names and all(_SUNNYBROOK.match(name) for name in names):
        return "sunnybrook"
    return "acdc" if names and all(_ACDC.match(name) for name in names) else ""


def starts_with(file: Path, name: str) -> bool:
    """Check whether a file's name is `name` or continues it after a separator."""
    rest = file.name[len(name) :]
    return file.name.startswith(name) and not rest[:1].isalnum()


def _take(pattern: re.Pattern[str], name: str) -> tuple[str, str | None]:
    """Return the name without the last match, and its group (or the match); None without one."""
    found = list(pattern.finditer(name))
    if not found:
        return name, None
    last = found[-1]
    return name[: last.start()] + name[last.end() :], last[last.lastindex or 0]
