"""Real text in real pixels, where rapidocr is installed (the extra `deid`)."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.ultrasound.scans import a4c, identity
from xraygpt.ultrasound.intake import Settings, deidentify, describe
from xraygpt.ultrasound.sector import find_sector
from xraygpt.ultrasound.source import read_clip
from xraygpt.ultrasound.text import load_rapidocr, mask_boxes, search_text, to_mask

pytest.importorskip(
    "rapidocr_onnxruntime", reason="rapidocr is not installed: pip install '.[deid]'"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def find():
    return load_rapidocr()


def test_the_name_in_the_real_cine_is_found_and_masked(find):
    """The cine shows PLA at the top left, which is its PatientName."""
    clip = read_clip(a4c())
    result = deidentify(clip, Settings(mask_text="matches", text_frames=2), find)
    assert result.text is not None and result.left is not None
    (name,) = (text for text in result.text if text.matches)
    assert name.matches == ("PatientName",) and not name.in_sector
    assert name.box[2] < 40 and name.box[3] < 20 and name.frames == tuple(range(30))
    assert describe(result)["matches_left"] == 0
    x0, y0, x1, y1 = name.box
    assert clip.pixels[:, y0:y1, x0:x1].max() > 100
    assert result.pixels[:, y0:y1, x0:x1].max() == 0


def test_the_name_is_masked_by_its_box_alone(find):
    """Without the mask of the sector, the box must be enough."""
    clip = read_clip(a4c())
    sector = find_sector(clip).mask
    found = search_text(clip.pixels[:3], find, clip.identity, sector, 2)
    assert sum("PatientName" in text.matches for text in found) == 1
    pixels = clip.pixels[:3].copy()
    mask_boxes(pixels, to_mask(found, "matches"), sector)
    left = search_text(pixels, find, clip.identity, sector, 2)
    assert len(left) >= 5  # the other texts are still there
    assert not any(text.matches for text in left)


def test_a_name_over_the_beating_heart_is_found_and_masked(find):
    clip = read_clip(a4c())
    sector = find_sector(clip).mask
    pixels = clip.pixels[::10].copy()
    for frame in pixels:
        picture = Image.fromarray(frame)
        ImageDraw.Draw(picture).text((130, 130), "QUIMBY 12.04.1959", fill=(255, 255, 255))
        frame[:] = np.asarray(picture)
    who = identity(PatientName="Quimby^Philippa", PatientBirthDate="19590412")
    found = search_text(pixels, find, who, sector, 2)
    (place,) = (text for text in found if text.in_sector)
    assert place.matches == ("PatientName", "PatientBirthDate")
    mask_boxes(pixels, to_mask(found, "matches"), sector)
    assert not any(text.in_sector for text in search_text(pixels, find, who, sector, 2))


@pytest.mark.data
def test_dates_and_institutions_in_real_images(real_data, find):
    folder = real_data / "echo" / "dicom"
    for name, element in (
        ("gdcm-US-ALOKA-16.dcm", "StudyDate"),
        ("US1_J2KR.dcm", "InstitutionName"),
    ):
        clip = read_clip(folder / name)
        found = search_text(clip.pixels, find, clip.identity, find_sector(clip).mask)
        assert any(element in text.matches for text in found)
