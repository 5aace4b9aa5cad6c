"""SYNTHETIC ultrasound: a fan of speckle with a beating wall, text blocks and an ECG trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import UltrasoundMultiFrameImageStorage, generate_uid

from tests.media.dicom_files import dataset, save
from xraygpt.ultrasound.clip import Clip
from xraygpt.ultrasound.identity import Identity, read_identity
from xraygpt.ultrasound.text import FoundText

HEIGHT, WIDTH, FRAMES = 240, 320, 12
APEX, RADIUS = (12, 160), 190  # (row, column), pixels
INK = 250  # grey level of text; nothing else has it
NAME_BOX, VIEW_BOX, INNER_BOX = (4, 4, 60, 16), (250, 6, 300, 18), (140, 150, 180, 160)


def a4c() -> Path:
    """pydicom's real apical four-chamber cine, whose region table is of another size."""
    return Path(get_testdata_file("examples_ybr_color.dcm"))


def fan() -> np.ndarray:
    """Return where the sector is, bool (H, W)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    across, down = x - APEX[1], y - APEX[0]
    inside = (down >= 0) & (np.abs(across) <= np.tan(np.deg2rad(40)) * down)
    return inside & (np.hypot(across, down) <= RADIUS)


def scan(seed: int = 0, frames: int = FRAMES) -> np.ndarray:
    """Return a grey clip, uint8 (F, H, W): speckle in the fan, and nothing else."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    clip = np.zeros((frames, HEIGHT, WIDTH), np.uint8)
    for i in range(frames):
        wall = 45 + 8 * np.sin(2 * np.pi * i / frames)
        ring = np.abs(np.hypot(y - 120, x - 160) - wall) < 8
        speckle = rng.rayleigh(18, (HEIGHT, WIDTH)) + 110 * ring
        clip[i] = np.where(fan(), np.clip(speckle, 1, 220), 0)
    return clip


def write_on(clip: np.ndarray, box: Sequence[int], frames: Sequence[int] | None = None) -> None:
    """Draw a text, as a block of ink, into some or all frames."""
    x0, y0, x1, y1 = box
    chosen = list(range(len(clip))) if frames is None else list(frames)
    clip[chosen, y0:y1, x0:x1] = INK


def write_ecg(clip: np.ndarray, row: int = 224, height: int = 14) -> np.ndarray:
    """Draw an ECG trace that moves along the bottom; return where it ever is, bool (H, W)."""
    seen = np.zeros((HEIGHT, WIDTH), bool)
    for i, frame in enumerate(clip):
        x = np.arange(WIDTH)
        beat = (x + 9 * i) % 90
        spike = np.where(beat < 6, -height + np.abs(beat - 3) * height / 3, 0)
        y = np.clip(row + np.rint(spike).astype(int), 0, HEIGHT - 1)
        frame[y, x] = 200
        seen[y, x] = True
    return seen


def finder(*texts: tuple[Sequence[int], str]) -> Any:
    """Return a text finder that reads a text wherever its box is full of ink."""

    def find(picture: np.ndarray) -> list[FoundText]:
        assert picture.dtype == np.uint8 and picture.shape[-1] == 3
        return [
            FoundText((x0, y0, x1, y1), text)
            for (x0, y0, x1, y1), text in texts
            if (picture[y0:y1, x0:x1] == INK).mean() > 0.9
        ]

    return find


def identity(**elements: Any) -> Identity:
    header = Dataset()
    for keyword, value in elements.items():
        setattr(header, keyword, value)
    return read_identity(header)


def clip_of(pixels: np.ndarray, **fields: Any) -> Clip:
    return Clip(pixels, "DICOM", **fields)


def region(box: Sequence[int] = (0, 0, WIDTH - 1, HEIGHT - 1), **elements: Any) -> Dataset:
    """Return an item of the region table; the last column and row are inside."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = box[0], box[1]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box[2], box[3]
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.05
    for keyword, value in elements.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    return item


def cine(path: Path, pixels: np.ndarray, *regions: Dataset, **elements: Any) -> Path:
    """Write a clip as DICOM with the header of an invented patient; None removes an element."""
    values: dict[str, Any] = {
        "SOPClassUID": UltrasoundMultiFrameImageStorage, "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]), "Modality": "US",
        "PatientName": "Quimby^Philippa", "PatientID": "MRN-774411", "StudyDate": "20210309",
        "PatientBirthDate": "19590412", "AccessionNumber": "AC99317", "FrameTime": 40,
        "InstitutionName": "Winterfold Heart Center", **elements,
    }  # fmt: skip
    ds = dataset(pixels, **{k: v for k, v in values.items() if v is not None})
    if regions:
        ds.SequenceOfUltrasoundRegions = list(regions)
    return save(path, ds)
