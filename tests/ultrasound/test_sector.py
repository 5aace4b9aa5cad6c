"""The sector is found, and what is outside it is removed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ultrasound.scans import (
    HEIGHT,
    INNER_BOX,
    NAME_BOX,
    VIEW_BOX,
    WIDTH,
    a4c,
    clip_of,
    fan,
    region,
    scan,
    write_ecg,
    write_on,
)
from xraygpt.ultrasound.clip import luminance
from xraygpt.ultrasound.regions import Region, RegionTable
from xraygpt.ultrasound.sector import find_sector
from xraygpt.ultrasound.source import read_clip

# Text of the real cine: (x0, y0, x1, y1) of its corners, the scale, the depth and the menu.
A4C_TEXT = [(0, 0, 45, 30), (296, 12, 320, 42), (302, 60, 320, 95), (285, 195, 298, 206),
            (38, 226, 284, 238)]  # fmt: skip


def overlap(mask: np.ndarray, expected: np.ndarray) -> float:
    return float((mask & expected).sum() / (mask | expected).sum())


def box_mask(*box: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_the_fan_is_found_by_its_motion():
    clip = scan()
    for box in (NAME_BOX, VIEW_BOX):
        write_on(clip, box)
    found = find_sector(clip_of(clip))
    assert found.source == "motion"
    assert overlap(found.mask, fan()) > 0.9
    assert (found.mask & fan()).sum() / fan().sum() > 0.99  # hardly anything is lost
    assert not (found.mask & (box_mask(*NAME_BOX) | box_mask(*VIEW_BOX))).any()


def test_a_moving_ecg_trace_does_not_widen_the_sector():
    clip = scan(frames=30)
    trace = write_ecg(clip)
    found = find_sector(clip_of(clip))
    assert (found.mask & fan()).sum() / fan().sum() > 0.99
    outside = trace & ~fan()
    assert outside.sum() > 400 and not (found.mask & outside).any()


def test_dim_corners_of_the_fan_belong_to_it():
    """Speckle of one grey level is enough; what is black for all frames is bounded by it."""
    clip = scan()
    dim = fan() & (np.abs(np.arange(WIDTH) - 160) > 70)
    clip[:, dim] = np.random.default_rng(1).integers(0, 4, (len(clip), int(dim.sum())))
    found = find_sector(clip_of(clip))
    assert (found.mask & fan()).sum() / fan().sum() > 0.97


def test_a_still_image_by_its_brightness():
    still = scan(frames=1)
    write_on(still, NAME_BOX)
    still[:, 2:12, 100:280:3] = 200  # a line of text: strokes with gaps
    found = find_sector(clip_of(still))
    assert found.source == "brightness"
    assert (found.mask & fan()).sum() / fan().sum() > 0.95
    assert not (found.mask & box_mask(*NAME_BOX)).any()
    frozen = find_sector(clip_of(np.repeat(still, 6, axis=0)))
    assert frozen.source == "brightness" and np.array_equal(frozen.mask, found.mask)


def test_an_empty_picture_has_no_sector():
    found = find_sector(clip_of(np.zeros((5, HEIGHT, WIDTH), np.uint8)))
    assert found.source == "none" and found.mask.all()


def table(*regions: Region) -> RegionTable:
    return RegionTable(regions)


def test_a_valid_table_bounds_the_sector():
    box = (60, 0, 260, 150)
    clip = scan()
    sector = Region(box, "2D", "tissue", ("cm", "cm"), (0.05, 0.05))
    spectrum = Region((0, 210, 320, 235), "spectral", "PW spectral Doppler", ("s", "cm/s"), None)
    ecg = Region((0, 180, 320, 205), "waveform", "ECG trace", ("s", "none"), None)
    found = find_sector(clip_of(clip, regions=table(sector, spectrum, ecg)))
    assert found.source == "region table and motion"
    assert not (found.mask & ~(box_mask(*box) | box_mask(*spectrum.box))).any()
    assert found.mask[215, 5] and not found.mask[190, 5]  # the spectrum stays, the ECG goes
    assert not found.mask[20, 70]  # a corner of the rectangle beside the fan
    still = find_sector(clip_of(clip[:1], regions=table(sector)))
    assert still.source == "region table" and still.mask[20, 70]


def test_a_refused_table_is_not_used(tmp_path):
    from tests.ultrasound.scans import cine

    clip = read_clip(cine(tmp_path / "x.dcm", scan(), region((0, 0, 639, 479))))
    assert clip.regions.refused and find_sector(clip).source == "motion"


def test_the_real_cine_loses_its_text_and_keeps_its_sector():
    clip = read_clip(a4c())
    found = find_sector(clip)
    grey = luminance(clip.pixels)
    for x0, y0, x1, y1 in A4C_TEXT:
        text = grey[:, y0:y1, x0:x1]
        assert text.max() > 90  # there is something to remove
        inside = found.mask[y0:y1, x0:x1]
        assert not inside.any()
    motion = grey.astype(np.float32).std(axis=0)
    assert motion[found.mask].sum() / motion.sum() > 0.99
    assert 0.36 < found.share < 0.44
    assert found.mask[INNER_BOX[1], INNER_BOX[0]]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("number", ["000", "001", "002", "003", "005", "006", "008", "051", "053"])
def test_real_clips_keep_their_sector(real_data, number: str):
    """Text and a scrolling trace are drawn beside the sector of a real clip; only they go."""
    path = real_data / "echo" / "my_heart" / f"SDX000{number}.mp4"
    clip = read_clip(path)
    pixels = clip.pixels[::3].copy()
    motion = luminance(pixels).astype(np.float32).std(axis=0)
    bright = luminance(pixels).max(axis=0) > 24
    text = np.zeros(bright.shape, bool)
    for row in (8, 26):
        text[row : row + 12, 10:150:2] = True
    text[100:300:20, 770:790] = True
    pixels[:, text] = 220
    for i, frame in enumerate(pixels):
        x = np.arange(frame.shape[1])
        frame[585 - (10 * (((x + 7 * i) % 120) < 8)), x] = (40, 220, 60)
    found = find_sector(clip_of(pixels))
    assert found.source == "motion"
    assert not (found.mask & text).any() and not found.mask[580:].any()
    assert motion[found.mask].sum() / motion.sum() > 0.998
    assert (bright & ~found.mask).sum() < 0.003 * bright.sum()
