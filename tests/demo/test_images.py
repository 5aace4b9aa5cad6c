"""Uploads, examples, the viewer, and the images the model reads."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from tests.demo.bad_files import files_with_warnings, refused_files
from tests.demo.helpers import SHORT, final_text, upload
from tests.demo.trained_model import square
from tests.media.dicom_files import dataset, save
from xraygpt.demo.examples import draw_examples
from xraygpt.media.pixels import read_image


@pytest.mark.slow
def test_bad_files_get_a_message_and_are_deleted(controller, tmp_path):
    session = controller.sessions.get("a")
    for name, (file, expected) in refused_files(tmp_path).items():
        [message] = upload(controller, session, file)
        assert expected in message, name
        assert str(session.folder) not in message and "Secret" not in message
        assert len(message) < 300 and "Traceback" not in message
    assert not list(session.folder.iterdir()) and not list(controller.sessions.uploads.iterdir())
    assert session.images == [] and "Upload" in controller.images.viewer(session)
    assert upload(controller, session, square(tmp_path, "left")) == []  # the session still works
    assert final_text(controller.responder.draft(session, SHORT))


def test_unusual_images_get_a_warning_and_are_added(controller, tmp_path):
    session = controller.sessions.get("a")
    for name, (file, expected) in files_with_warnings(tmp_path).items():
        assert upload(controller, session, file) == []
        assert expected in " ".join(session.selected_image.warnings), name
    assert final_text(controller.responder.draft(session, SHORT))


def test_a_phantom_gets_a_warning_unless_the_model_was_trained_on_phantoms(controller, tmp_path):
    session = controller.sessions.get("a")
    phantom, _ = draw_examples(tmp_path / "examples")[0]
    assert upload(controller, session, phantom, square(tmp_path, "left")) == []
    drawn, other = session.images
    assert "SYNTHETIC phantom" in " ".join(controller.warnings(drawn))
    assert "SYNTHETIC" not in " ".join(controller.warnings(other))
    controller.synthetic = True
    assert "SYNTHETIC" not in " ".join(controller.warnings(drawn))


def test_one_bad_file_among_good_ones(controller, tmp_path):
    session = controller.sessions.get("a")
    bad = refused_files(tmp_path)["text.png"][0]
    errors = upload(controller, session, square(tmp_path, "left"), bad, square(tmp_path, "right"))
    assert len(errors) == 1 and len(session.images) == 2


def test_only_uploaded_files_are_added(controller, tmp_path):
    images, session = controller.images, controller.sessions.get("a")
    outside = square(tmp_path, "left")
    inside = controller.sessions.uploads / "x"
    inside.mkdir()
    link = inside / "link.png"
    link.symlink_to(outside)
    folders = (inside, controller.sessions.uploads, controller.sessions.root, inside / ".." / "..")
    for path in (outside, link, *folders):
        assert images.add_uploads(session, [str(path)]) == ["File 1 is not an uploaded file"]
    assert outside.exists() and inside.exists()


@pytest.mark.slow
def test_an_image_uploaded_twice_is_added_twice(controller, tmp_path):
    """Gradio stores a file under its name in a folder named by the hash of its content."""
    content = square(tmp_path, "left").read_bytes()
    images = controller.images
    a, b = controller.sessions.get("a"), controller.sessions.get("b")
    folder = controller.sessions.uploads / "hash"
    folder.mkdir()
    for name in ("x.png", "y.png"):
        (folder / name).write_bytes(content)
    assert images.add_uploads(a, [str(folder / "x.png"), str(folder / "y.png")]) == []
    assert not folder.exists() and len(a.images) == 2
    # b uploaded it before it was moved to a.
    assert images.add_uploads(b, [str(folder / "x.png")]) == []
    assert len(b.images) == 1
    a.clear(), b.clear()
    assert images.add_uploads(b, [str(folder / "x.png")]) == [
        "File 1 no longer exists; upload it again"
    ]


def test_the_model_reads_each_displayed_frame_once(controller, tmp_path):
    frames = np.stack([np.full((32, 32), v, np.uint16) for v in (100, 2000, 4000)])
    frames[:, 4:9, 4:9] = 3000
    session = controller.sessions.get("a")
    upload(controller, session, save(tmp_path / "cine.dcm", dataset(frames, 12)))
    assert session.selected_image.num_frames == 3
    controller.images.prefill(session)
    session.selected_image.show_frame(2)
    controller.images.prefill(session)
    assert session.model_images == [(0, 2)]  # frame 0 was removed: no question was asked about it
    first = final_text(controller.responder.ask(session, "What?", SHORT))
    fresh = controller.parts.engine.start()
    fresh.add_image(controller.parts.read_media(session.selected_image.path, 2))
    assert first == fresh.ask("What?", SHORT.to_generation(controller.parts.generation)).text()
    session.selected_image.show_frame(1)
    list(controller.responder.ask(session, "And here?", SHORT))
    assert session.model_images == [(0, 2), (0, 1)]
    session.selected_image.show_frame(2)
    list(controller.responder.ask(session, "And again?", SHORT))
    assert session.model_images == [(0, 2), (0, 1)]
    assert "frame 3 of 3" in controller.images.viewer(session)


def test_two_images_are_read_in_order(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"), square(tmp_path, "right"))
    answer = final_text(controller.responder.ask(session, "What?", SHORT))
    fresh = controller.parts.engine.start()
    for kind in ("left", "right"):
        fresh.add_image(controller.parts.read_media(square(tmp_path, kind)))
    assert answer == fresh.ask("What?", SHORT.to_generation(controller.parts.generation)).text()


@pytest.mark.slow
def test_the_viewer_shows_the_pixels_of_the_reader(controller, tmp_path):
    ramp = (np.add.outer(np.arange(40), np.arange(50)) * 40).astype(np.uint16)
    file = save(tmp_path / "x.dcm", dataset(ramp, 12, PhotometricInterpretation="MONOCHROME1"))
    session = controller.sessions.get("a")
    upload(controller, session, file)
    image = session.selected_image

    def expected(**options) -> np.ndarray:
        return np.rint(read_image(file, **options).pixels * 255).astype(np.uint8)

    np.testing.assert_array_equal(image.pixels(), expected())
    image.window = (1200.0, 600.0)
    np.testing.assert_array_equal(image.pixels(), expected(window=(1200, 600)))
    image.invert = True
    np.testing.assert_array_equal(image.pixels(), 255 - expected(window=(1200, 600)))
    image.window, image.invert = image.file_window, False  # the initial position of the sliders
    np.testing.assert_array_equal(image.pixels(), expected())
    assert "stored as a negative" in image.description() and "SYNTHETIC" not in image.description()
    controller.images.examples = draw_examples(tmp_path / "examples")
    assert controller.images.add_example(session, 0) == []
    assert session.selected_image.description().startswith("SYNTHETIC phantom")


@pytest.mark.slow
def test_no_patient_tag_is_on_the_page(controller, real_data):
    for file in sorted((real_data / "dicom").glob("*.dcm")):
        session = controller.sessions.get(file.name)
        assert upload(controller, session, file) == []
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        page = controller.images.viewer(session) + session.selected_image.description()
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "InstitutionName"):
            value = str(header.get(keyword, "")).strip()
            assert not value or value not in page
        assert session.selected_image.warnings == []
        assert file.name not in page
