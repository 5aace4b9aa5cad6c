"""Text is found, compared with the header, masked and looked for again."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ultrasound.scans import (
    INK,
    INNER_BOX,
    NAME_BOX,
    VIEW_BOX,
    clip_of,
    fan,
    finder,
    identity,
    scan,
    write_on,
)
from xraygpt.ultrasound.identity import Identity
from xraygpt.ultrasound.intake import Settings, deidentify, describe
from xraygpt.ultrasound.text import FoundText, TextBox, mask_boxes, search_text, to_mask

QUIMBY = identity(PatientName="Quimby^Philippa", StudyDate="20210309")
TEXTS = ((NAME_BOX, "QUIMBY, P."), (VIEW_BOX, "MI 0.9"), (INNER_BOX, "LVEF"))


def search(clip: np.ndarray, *texts, who: Identity = QUIMBY, frames: int = 5) -> list[TextBox]:
    return search_text(clip, finder(*texts), who, fan(), frames)


def test_places_matches_and_regions():
    clip = scan()
    for box, _ in TEXTS:
        write_on(clip, box)
    found = {text.box: text for text in search(clip, *TEXTS)}
    assert set(found) == {NAME_BOX, VIEW_BOX, INNER_BOX}
    assert found[NAME_BOX].matches == ("PatientName",)
    assert found[VIEW_BOX].matches == found[INNER_BOX].matches == ()
    assert found[INNER_BOX].in_sector and not found[NAME_BOX].in_sector
    assert all(text.frames == tuple(range(12)) for text in found.values())


def test_a_text_that_is_shown_for_a_while():
    """It is masked from the searched frame before it to the one after it, and where it is alike."""
    clip = scan(frames=20)
    write_on(clip, VIEW_BOX, range(8, 13))
    (found,) = search(clip, (VIEW_BOX, "QUIMBY"))  # frames 0, 4, 9, 14 and 19 are searched
    assert set(range(8, 13)) <= set(found.frames) <= set(range(5, 14))
    assert 0 not in found.frames and 19 not in found.frames


def test_a_text_that_a_searched_frame_misses_is_found_where_it_looks_the_same():
    clip = scan(frames=20)
    write_on(clip, VIEW_BOX, [9, 16])
    (found,) = search(clip, (VIEW_BOX, "MI"))
    assert {9, 16} <= set(found.frames)


def test_words_of_one_line_are_compared_together():
    clip = scan()
    left, right, below = (4, 4, 30, 14), (36, 4, 70, 14), (4, 30, 30, 40)
    for box in (left, right, below):
        write_on(clip, box)
    who = identity(PatientID="7744-1199")
    found = search(clip, (left, "7744"), (right, "1199"), (below, "1199"), who=who)
    matches = {text.box: text.matches for text in found}
    assert matches == {left: ("PatientID",), right: ("PatientID",), below: ()}


def test_dates_are_marked_without_a_header():
    clip = scan()
    write_on(clip, NAME_BOX)
    (found,) = search(clip, (NAME_BOX, "24-MAY-02"), who=Identity())
    assert found.is_date and found.identifies and found.matches == ()


@pytest.mark.parametrize(("mode", "masked"), [("all", 3), ("matches", 1), ("none", 0)])
def test_what_is_masked(mode, masked: int):
    clip = scan()
    for box, _ in TEXTS:
        write_on(clip, box)
    assert len(to_mask(search(clip, *TEXTS), mode)) == masked


def test_masking_blackens_the_box_in_its_frames_only():
    clip = scan(frames=6)
    before = clip.copy()
    area = mask_boxes(clip, [TextBox(INNER_BOX, (1, 2))], fan())
    x0, y0, x1, y1 = INNER_BOX
    changed = (clip != before).any(axis=(0, 1)), (clip != before).any(axis=(1, 2))
    assert changed[1].tolist() == [False, True, True, False, False, False]
    assert not clip[1:3, y0 - 1 : y1 + 1, x0 - 1 : x1 + 1].any()
    speckle = (before > 0) & fan()  # is at least 1
    assert area == (speckle & (clip == 0)).sum() < 2 * 1.9 * (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize("mode", ["all", "matches", "none"])
def test_a_second_search_says_what_is_left(mode):
    clip = scan()
    x0, y0, x1, y1 = INNER_BOX
    name, view = INNER_BOX, (x0, y0 + 30, x1, y1 + 30)
    for box in (name, view):
        write_on(clip, box)
    find = finder((name, "Philippa"), (view, "LV"))
    result = deidentify(clip_of(clip, identity=QUIMBY), Settings(mask_text=mode), find)
    left = {"all": 0, "matches": 1, "none": 2}[mode]
    row = describe(result)
    assert (row["text_found"], row["text_matches"], row["text_left"]) == (2, 1, left)
    assert row["matches_left"] == (mode == "none")
    is_warned = any("may identify" in warning for warning in result.warnings)
    assert is_warned is (mode == "none")
    assert bool((result.pixels == INK).any()) is (mode != "all")


def test_text_outside_the_sector_goes_without_a_text_finder():
    clip = scan()
    write_on(clip, NAME_BOX)
    result = deidentify(clip_of(clip, identity=QUIMBY), Settings(), None)
    assert not (result.pixels == INK).any()
    assert result.text is None and "text was not looked for" in result.warnings
    row = describe(result)
    assert row["text_searched"] == "no" and row["text_found"] is None


def test_what_a_text_says_is_not_shown():
    found = FoundText(NAME_BOX, "Quimby")
    assert "Quimby" not in f"{found!r} {found}"
    (box,) = search_text(
        np.full((1, 40, 80), INK, np.uint8), finder((NAME_BOX, "Quimby")), QUIMBY,
        np.ones((40, 80), bool),
    )  # fmt: skip
    assert "uimby" not in f"{box!r} {box.as_dict()}"
