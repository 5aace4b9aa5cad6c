"""Attention maps on the page."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.demo.helpers import SHORT, upload
from tests.demo.trained_model import square
from tests.media.dicom_files import dataset, save
from xraygpt.demo.display import heat_to_rgba
from xraygpt.demo.maps import answer_spans


def test_spans_of_sentences_and_words(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    text = "Findings: Heart is large. No 2.5 cm mass. Impression: Big heart."
    controller.images.update_model_images(session)
    session.conversation.restore("Report.", text)
    sentences = [text[a:b] for a, b in answer_spans(session, 0, words=False)]
    assert sentences == ["Heart is large.", "No 2.5 cm mass.", "Big heart."]
    words = [text[a:b] for a, b in answer_spans(session, 0, words=True)]
    assert words[:4] == ["Findings", "Heart", "is", "large"]
    assert "10%" not in controller.maps.show(session, 0, answer_spans(session, 0, words=True)[1])
    heat = session.heat[0, 0]
    assert heat.shape == (32, 32) and heat.max() == pytest.approx(1, abs=0.01)
    assert 'class="xg-heat"' in controller.images.viewer(session)


def test_a_map_is_transparent_where_it_is_zero():
    heat = np.zeros((40, 30), np.float32)
    heat[10, 10] = 1
    rgba = heat_to_rgba(heat)
    assert rgba.shape == (40, 30, 4) and rgba[0, 0, 3] == 0 and rgba[10, 10, 3] == 255


def test_the_map_is_shown_on_the_frame_the_model_read(controller, tmp_path):
    frames = np.stack([np.full((32, 32), v, np.uint16) for v in (100, 2000, 4000)])
    frames[:, 4:9, 4:9] = 3000
    session = controller.sessions.get("a")
    upload(controller, session, save(tmp_path / "cine.dcm", dataset(frames, 12)))
    list(controller.responder.draft(session, SHORT))
    session.selected_image.show_frame(2)
    list(controller.responder.ask(session, "Now?", SHORT))
    session.selected_image.show_frame(1)
    text = controller.maps.show(session, 0, (0, 4))
    assert session.selected_image.frame == 0 and 'class="xg-heat"' in controller.images.viewer(
        session
    )
    assert "Image 1" not in text
    text = controller.maps.show(session, 1, (0, 4))
    assert "Image 1, frame 1:" in text and "Image 1, frame 3:" in text


def test_a_large_image_has_a_smaller_map(controller, tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((3000, 1500), np.uint8)).save(path)
    session = controller.sessions.get("a")
    upload(controller, session, path)
    list(controller.responder.draft(session, SHORT))
    controller.maps.show(session, 0, (0, 4))
    assert session.heat[0, 0].shape == (512, 256)
