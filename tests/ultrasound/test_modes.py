"""Colour Doppler is told from tint, palettes and coloured lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ultrasound.scans import HEIGHT, WIDTH, a4c, clip_of, fan, scan, write_ecg
from xraygpt.ultrasound.modes import MIN_SHARE, coloured_share, find_modes
from xraygpt.ultrasound.regions import Region, RegionTable
from xraygpt.ultrasound.sector import Sector, find_sector
from xraygpt.ultrasound.source import read_clip

SECTOR = Sector(fan(), "motion")


def rgb(clip: np.ndarray) -> np.ndarray:
    return np.repeat(clip[..., None], 3, axis=-1)


def palette(clip: np.ndarray, name: str) -> np.ndarray:
    """Colour a grey clip by a table from brightness to colour."""
    x = np.linspace(0, 1, 256)[:, None]
    tables = {
        "sepia": 255 * x ** np.array([0.75, 1.0, 1.5]),
        "blue": 255 * x ** np.array([1.4, 1.0, 0.7]),
        "hot": 255 * np.clip(3 * x - np.array([0.0, 1.0, 2.0]), 0, 1),
    }
    return np.clip(tables[name], 0, 255).astype(np.uint8)[clip]


def flow(clip: np.ndarray, colours: Any, share: float = 0.05) -> np.ndarray:
    """Paint patches of flow that come and go into the middle of the fan."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.sqrt(share * fan().sum() / np.pi)
    painted = clip.copy()
    for i, frame in enumerate(painted):
        blob = np.hypot(y - 120, x - 150) < radius * np.abs(np.sin(np.pi * i / len(clip)))
        colour = np.array(colours[i % len(colours)])
        level = 0.4 + 0.6 * np.abs(np.sin(x / 9 + y / 7))[..., None]
        frame[blob] = (level * colour)[blob]
    return painted


RED, BLUE, ORANGE = (230, 40, 20), (30, 60, 240), (255, 170, 0)


@pytest.mark.parametrize(
    "colours", [[RED], [BLUE], [RED, BLUE], [ORANGE]], ids=["red", "blue", "both", "power"]
)
@pytest.mark.parametrize("tint", [None, "sepia", "blue"])
def test_flow_is_found(colours: Any, tint: str | None):
    clip = rgb(scan()) if tint is None else palette(scan(), tint)
    found = find_modes(clip_of(flow(clip, colours)), SECTOR)
    assert (found.colour_doppler, found.source, found.b_mode) == ("yes", "pixels", "yes")
    assert found.spectral_doppler == found.m_mode == "unknown"


@pytest.mark.parametrize("tint", ["sepia", "blue", "hot"])
def test_tint_is_no_flow(tint: str):
    coloured = palette(scan(), tint)
    spread = coloured.max(-1).astype(int) - coloured.min(-1)
    assert (spread > 20)[:, fan()].mean() > 0.1  # a plain test for colour would be fooled
    assert coloured_share(coloured, fan()) < MIN_SHARE / 3


def test_coloured_lines_and_markers_are_no_flow():
    clip = rgb(scan(frames=20))
    trace = np.zeros((20, HEIGHT, WIDTH), np.uint8)
    write_ecg(trace, row=150)  # across the sector
    clip[trace > 0] = (0, 255, 0)
    clip[:, 60:75, 150:165] = (0, 200, 0)  # a marker that never changes
    assert coloured_share(clip, fan()) < MIN_SHARE


def test_colour_outside_the_sector_does_not_count():
    clip = rgb(scan())
    clip[::2, 10:60, 10:60] = RED
    clip[1::2, 10:60, 10:60] = BLUE
    assert coloured_share(clip, fan()) == 0.0
    assert coloured_share(clip, np.ones((HEIGHT, WIDTH), bool)) > MIN_SHARE


def test_a_still_image_with_flow():
    clip = flow(rgb(scan(frames=12)), [RED])[6:7]
    assert coloured_share(clip, fan()) > MIN_SHARE


def region(form: str, data: str, box: Any = (40, 10, 280, 200)) -> Region:
    return Region(box, form, data, ("cm", "cm"), (0.05, 0.05))


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([("2D", "tissue")], ("yes", "no", "no", "no")),
        ([("2D", "tissue"), ("2D", "colour flow")], ("yes", "yes", "no", "no")),
        ([("2D", "tissue"), ("spectral", "PW spectral Doppler")], ("yes", "no", "yes", "no")),
        ([("spectral", "CW spectral Doppler")], ("no", "no", "yes", "no")),
        ([("2D", "tissue"), ("M-mode", "tissue")], ("yes", "no", "no", "yes")),
        ([("2D", "tissue"), ("none", "colour bar")], ("yes", "no", "no", "no")),
    ],
)
def test_the_table_says_what_is_shown(regions: Any, expected: tuple[str, ...]):
    table = RegionTable(tuple(region(*r) for r in regions))
    found = find_modes(clip_of(scan(frames=3), regions=table), SECTOR)
    answers = (found.b_mode, found.colour_doppler, found.spectral_doppler, found.m_mode)
    assert answers == expected and found.source == "region table"


def test_a_refused_table_says_nothing():
    table = RegionTable((region("spectral", "PW spectral Doppler"),), ("wrong size",))
    found = find_modes(clip_of(scan(frames=3), regions=table), SECTOR)
    assert found.source == "pixels" and found.spectral_doppler == "unknown"


def share_of(path: Path) -> float:
    clip = read_clip(path)
    return coloured_share(clip.pixels, find_sector(clip).mask)


@pytest.mark.slow
@pytest.mark.data
def test_real_clips(real_data):
    """Measured: at most 0.0013 without Doppler (a green cursor), at least 0.10 with it."""
    echo = real_data / "echo"
    flows = [echo / "my_heart/SDX000053.mp4", echo / "dicom/US1_J2KI.dcm",
             echo / "dicom/gdcm-US-RGB-8-esopecho.dcm"]  # fmt: skip
    plain = [echo / "my_heart/SDX000001.mp4", echo / "my_heart/SDX000008.mp4",
             echo / "dicom/gdcm-US-ALOKA-16.dcm", a4c()]  # fmt: skip
    assert min(map(share_of, flows)) > 10 * MIN_SHARE
    assert max(map(share_of, plain)) < MIN_SHARE / 3
