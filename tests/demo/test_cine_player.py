"""The player's HTML: sheets, contours, durations and the order of clips."""

from __future__ import annotations

import base64
import html
import json
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from xraygpt.demo import cine_player
from xraygpt.demo.cine_player import frame_durations, player_html
from xraygpt.studies.report import Clip

LEGEND = (("cavity", "#ff0000"), ("scar", "#00ff00"))


def clip(count=5, name="a", contour=True, shape=(8, 12), **settings) -> Clip:
    """Frame i has the value 40 i; contours have i pixels."""
    frames = np.stack([np.full(shape, 40 * i, np.uint8) for i in range(count)])
    contours = np.zeros((count, *shape[:2]), np.uint8)
    for i in range(count):
        contours[i].flat[:i] = 1
    options = {"contours": contours, "legend": LEGEND} if contour else {}
    return Clip(name=name, caption=f"clip {name}", frames=frames, duration=1.0,
                **{**options, **settings})  # fmt: skip


def content(page: str) -> dict:
    return json.loads(html.unescape(re.search('data-clips="([^"]*)"', page)[1]))


def picture(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_sheets_have_the_frames_row_by_row():
    [encoded] = content(player_html([clip()]))["clips"]
    assert (encoded["count"], encoded["size"], encoded["columns"]) == (5, [12, 8], 3)
    sheet = np.asarray(picture(encoded["sheets"][0]).convert("L")).astype(int)
    assert sheet.shape == (16, 36)
    for i in range(5):
        part = sheet[i // 3 * 8 : i // 3 * 8 + 8, i % 3 * 12 : i % 3 * 12 + 12]
        assert abs(part - 40 * i).max() <= 3
    overlay = np.asarray(picture(encoded["overlays"][0]).convert("RGBA"))
    assert overlay[0, 12].tolist() == [255, 0, 0, 255] and overlay[0, 13, 3] == 0
    assert (overlay[..., 3] > 0).sum() == 0 + 1 + 2 + 3 + 4
    assert encoded["legend"] == [["cavity", "#ff0000"]]  # there is no scar


def test_many_frames_are_spread_over_several_sheets(monkeypatch):
    monkeypatch.setattr(cine_player, "SHEET_SIDE", 24)
    [encoded] = content(player_html([clip(7, shape=(8, 12, 3))]))["clips"]
    assert (encoded["columns"], encoded["perSheet"]) == (2, 6)
    assert [picture(uri).size for uri in encoded["sheets"]] == [(24, 24), (24, 8)]


def test_the_clip_with_the_largest_contours_is_first():
    clips = [clip(2, "small"), clip(5, "<large>"), clip(contour=False, name="none")]
    page = player_html(clips)
    assert content(page)["first"] == 1 and "&lt;large&gt;" in page and "<large>" not in page
    assert content(page)["clips"][2]["overlays"] == []
    assert player_html([]) == ""
    assert re.search("<label hidden>", player_html([clip(contour=False)]))
    assert "http" not in page.replace("http://www.w3.org", "")


def test_frames_last_as_long_as_their_times_say():
    times = np.array([0.1, 0.2, 0.4, 0.5, 0.6])
    assert frame_durations(clip(times=times)) == pytest.approx([0.1, 0.2, 0.1, 0.1, 0.5])
    assert frame_durations(clip()) == pytest.approx([0.2] * 5)
    assert frame_durations(clip(times=times[::-1])) == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("wrong", [
    {"times": np.zeros(4)}, {"contours": np.zeros((5, 4, 4), np.uint8)}, {"legend": ()},
])  # fmt: skip
def test_a_clip_whose_parts_do_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match=r"frames|legend"):
        clip(**wrong)
