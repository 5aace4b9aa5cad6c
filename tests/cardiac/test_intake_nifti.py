"""NIfTI files become the same stacks as DICOM: positions, order, times; what is odd is reported."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest

from tests.cardiac.volumes import (
    PIXDIM,
    QFORM_CODE,
    RIGHT_FRONT_HEAD,
    UNITS,
    patch,
    values,
    write_volume,
)
from xraygpt.cardiac.intake import read_study
from xraygpt.common.errors import DataError


def one_stack(path):
    (stack,) = read_study(path).stacks
    return stack


def test_pixels_positions_and_times(tmp_path):
    """NIfTI's x and y point to the right and front, DICOM's to the left and back: 30 and 40 of the
    first pixel become −30 and −40. Columns go to the left (1, 0, 0), rows to the back (0, 1, 0).
    """
    stack = one_stack(write_volume(tmp_path / "a_sax.nii.gz"))
    assert (stack.role, stack.shape, stack.warnings) == ("SAX", (6, 3, 5, 4), ())
    image = stack.image(2, 1)
    assert (image.dtype, image[3, 2]) == (np.float32, 2000 + 100 + 30 + 2)  # row 3, column 2
    assert stack.spacing == (1.25, 1.5)
    assert stack.axes.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert stack.origins.tolist() == [[-30, -40, z] for z in (-20, -12, -4)]
    assert stack.slice_widths == pytest.approx([8, 8, 8])
    assert stack.times == pytest.approx([0, 0.15, 0.3, 0.45, 0.6, 0.75])
    assert stack.rr_intervals == pytest.approx([0.9] * 3)
    # Row 2, column 3 of slice 1: x = −30 + 3 · 1.5, y = −40 + 2 · 1.25, z = −12.
    assert stack.to_patient(1, np.array([2]), np.array([3])) == pytest.approx(
        np.array([[-25.5, -37.5, -12]])
    )


def test_slices_stored_from_the_other_end_are_reversed(tmp_path):
    """Slices that go to the feet start at z = −4; the normal (0, 0, 1) points to the head."""
    affine = RIGHT_FRONT_HEAD.copy()
    affine[2, 2], affine[2, 3] = -8, -4
    stack = one_stack(write_volume(tmp_path / "a_sax.nii", values(), affine))
    assert stack.positions.tolist() == [-20, -12, -4]
    assert [stack.image(0, s)[0, 0] for s in range(3)] == [200, 100, 0]


def test_an_oblique_stack_lies_along_its_normal(tmp_path):
    """Rotated by 30° about x: the normal has the cosine along z and the sine along y."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    stack = one_stack(write_volume(tmp_path / "a_sax.nii.gz", affine=turn @ RIGHT_FRONT_HEAD))
    assert stack.normal == pytest.approx([0, s, c])  # NIfTI's −s to the front is s to the back
    assert np.diff(stack.positions) == pytest.approx([8, 8])
    assert stack.spacing == (1.25, 1.5) and stack.warnings == ()


@pytest.mark.parametrize(
    ("units", "scale", "step"),
    [(("meter", "msec"), 1e-3, 150), (("micron", "usec"), 1e3, 150_000), (("mm", "sec"), 1, 0.15)],
)
def test_units(tmp_path, units, scale, step):
    affine = np.diag([scale, scale, scale, 1]) @ RIGHT_FRONT_HEAD
    stack = one_stack(write_volume(tmp_path / "a_sax.nii", affine=affine, units=units, step=step))
    assert stack.spacing == pytest.approx((1.25, 1.5))
    assert stack.distance == pytest.approx(8)
    assert stack.times[1] == pytest.approx(0.15)
    assert stack.heart_rate == pytest.approx(60 / 0.9)


def test_rescale_slope_and_other_sizes(tmp_path):
    image = nib.Nifti1Image(values(), RIGHT_FRONT_HEAD)
    image.header.set_slope_inter(0.5, 3)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a_sax.nii.gz")
    assert one_stack(tmp_path / "a_sax.nii.gz").image(1, 1)[0, 0] == 553  # 0.5 · 1100 + 3
    for shape in ((4, 5), (4, 5, 3), (4, 5, 3, 1), (4, 5, 3, 1, 1)):
        data = np.ones(shape, np.float32)
        stack = one_stack(write_volume(tmp_path / f"b{len(shape)}.nii", data))
        assert stack.shape == (1, 3 if len(shape) > 2 else 1, 5, 4)
        assert stack.times is None


def test_two_frames_are_two_phases_without_a_curve(tmp_path):
    data = values()
    write_volume(tmp_path / "sax_es.nii.gz", data[..., 3])
    write_volume(tmp_path / "sax_ed.nii.gz", data[..., 0])
    write_volume(tmp_path / "lax_4c_ed.nii.gz", data[:, :, :1, 0])
    sax, long_axis = read_study(tmp_path).stacks
    assert (sax.role, long_axis.role) == ("SAX", "4CH")
    assert [sax.image(p, 0)[0, 0] for p in (0, 1)] == [0, 3000]  # end diastole first
    assert sax.warnings == ("there are only the phases ED, ES, so there is no curve",)
    assert sax.times is None and sax.rr_intervals is None


def test_frames_are_ordered_by_number(tmp_path):
    for number in range(1, 13):
        write_volume(tmp_path / f"x_frame{number}.nii.gz", values()[..., 0] + number)
    stack = one_stack(tmp_path)
    assert [stack.image(p, 0)[0, 0] for p in range(12)] == list(range(1, 13))
    assert stack.warnings == (
        "the name does not say what the images show: they are taken as short axis",
    )


def codes(*numbers):
    return lambda file: patch(file, QFORM_CODE, "<2h", *numbers)


def distances(*numbers):
    return lambda file: patch(file, PIXDIM + 4, f"<{len(numbers)}f", *numbers)


def units(code):
    return lambda file: patch(file, UNITS, "<B", code)


def no_place(*numbers):
    return lambda file: distances(*numbers)(codes(0, 0)(file))


NO_VOLUMES = ("spacing", "no volumes in mL")
ODD = {
    "no codes": (codes(0, 0), "does not say where the images lie", "origins"),
    "zero distance": (no_place(0, 1.25, 8), "pixdim is 0", "spacing"),
    "zero gap": (no_place(1.5, 1.25, 0), "distance between slices is unknown", "slice_widths"),
    "negative distance": (distances(-1.5, 1.25, 8), "sign is ignored", ""),
    "other pixdim": (distances(1, 1, 8), "pixdim says pixels of 1 × 1 × 8 mm, its affine 1.5", ""),
    "metres said to be mm": (no_place(0.0015, 0.0015, 0.008), "are implausible", "spacing"),
    "unit of length": (units(7 + 8), "unit of length is unknown", "spacing"),
    "unit of time": (units(2), r"unit of the time between phases \(0.15\)", "times"),
    "step of 0": (distances(1.5, 1.25, 8, 0), "no time between phases", "times"),
    "step of 1 s": (
        distances(1.5, 1.25, 8, 1),
        "6 phases of 1 s do not add up to a heartbeat",
        "times",
    ),
    "ms said to be s": (distances(1.5, 1.25, 8, 33), "unit of time right", "rr_intervals"),
    "damaged qform": (lambda f: patch(f, 256, "<3f", 0.9, 0.9, 0.9), "qform is damaged", ""),
}


@pytest.mark.parametrize(("change", "message", "unknown"), ODD.values(), ids=ODD)
def test_what_is_odd_in_a_header_is_reported(tmp_path, change, message, unknown):
    stack = one_stack(change(write_volume(tmp_path / "a_sax.nii")))
    assert any(re.search(message, text) for text in stack.warnings), stack.warnings
    if unknown:
        assert getattr(stack, unknown) is None
    else:
        assert stack.spacing == (1.25, 1.5) and stack.distance == pytest.approx(8)


def test_without_codes_the_distances_are_known(tmp_path):
    stack = one_stack(codes(0, 0)(write_volume(tmp_path / "a_sax.nii")))
    assert stack.spacing == (1.25, 1.5) and stack.slice_widths.tolist() == [8, 8, 8]


def test_other_matrices_are_reported(tmp_path):
    other = RIGHT_FRONT_HEAD.copy()
    other[0, 3] += 5  # mm to the right
    stack = one_stack(write_volume(tmp_path / "a_sax.nii", qform=other))
    assert "sform and qform differ by up to 5.0 mm" in stack.warnings[0]
    assert stack.origins[0].tolist() == [-30, -40, -20]
    sheared = RIGHT_FRONT_HEAD.copy()
    sheared[0, 2] = 2  # each slice 2 mm further to the right
    stack = one_stack(write_volume(tmp_path / "b_sax.nii", affine=sheared))
    assert any("shifted sideways by 2.0 mm" in text for text in stack.warnings)
    assert np.diff(stack.positions) == pytest.approx([8, 8])
    skewed = RIGHT_FRONT_HEAD.copy()
    skewed[0, 1] = 0.5
    stack = one_stack(write_volume(tmp_path / "c_sax.nii", affine=skewed))
    assert any("not at right angles" in text for text in stack.warnings)
    assert stack.spacing is None and stack.origins is None


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])


def colours(file):
    data = np.zeros((4, 5, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    write_volume(file, data)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("a.nii.gz", cut, r"a.nii.gz: it is cut short: [\d,]+ of 40,352 bytes are there; copy"),
        ("a.nii", cut, "a.nii: it is cut short: 804 of 1,072 bytes are there; copy or download"),
        ("a.nii", lambda f: f.write_bytes(b""), "no valid NIfTI file"),
        ("a.nii.gz", lambda f: f.write_bytes(b"no gzip" * 99), "no valid NIfTI file"),
        ("a.nii", colours, "its pixels are colours; save one grey value"),
        ("a.nii", lambda f: write_volume(f, np.ones((4, 5, 3), np.complex64)), "complex numbers"),
        ("a.nii", lambda f: write_volume(f, np.ones((4, 5, 3, 1, 3), "f4")), "it has 5 dimensions"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, damage, message):
    noise = np.random.default_rng(0).integers(0, 2**15, (20, 20, 5, 10), dtype=np.int16)
    damage(write_volume(tmp_path / name, noise if name.endswith("gz") else None))
    with pytest.raises(DataError, match=message):
        read_study(tmp_path / name)


def test_pixels_that_are_not_numbers(tmp_path):
    data = values().astype(np.float32)
    data[1, 1, 2, 3] = np.nan
    stack = one_stack(write_volume(tmp_path / "a_sax.nii", data))
    assert stack.image(3, 1).max() > 0
    with pytest.raises(DataError, match=r"slice 3 of phase 4 has pixels that are not numbers"):
        stack.image(3, 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x_ed.nii": (values()[..., 0],), "x_es.nii": (values()[:3, ..., 0],)}, "one series, but"),
        (
            {
                "x_ed.nii": (values()[..., 0],),
                "x_es.nii": (values()[..., 0], np.diag([-3.0, -3, 8, 1])),
            },
            "have pixels of 1.25 × 1.5 × 8 and 3 × 3 × 8 mm",
        ),
        (
            {
                "x_ed.nii": (values()[..., 0],),
                "x_es.nii": (values()[..., 0], np.diag([-1.5, -1.25, 8, 1])),
            },
            "lie 40.0 mm apart",
        ),
        ({"x_ed.nii": (values()[..., 0],), "x_ed.nii.gz": (values()[..., 0],)}, "the same series"),
    ],
)
def test_frames_that_do_not_fit_together(tmp_path, files, message):
    for name, content in files.items():
        write_volume(tmp_path / name, *content)
    with pytest.raises(DataError, match=message):
        read_study(tmp_path)


def test_only_asked_phases_are_read(tmp_path, monkeypatch):
    data = np.zeros((64, 64, 4, 20), np.int16)
    stack = one_stack(write_volume(tmp_path / "a_sax.nii", data, step=0.05))
    read = []
    real = nib.arrayproxy.ArrayProxy.__getitem__

    def spy(proxy, key):
        part = real(proxy, key)
        read.append(part.size)
        return part

    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, "__getitem__", spy)
    for slice_ in range(4):
        stack.image(7, slice_)
    assert read == [64 * 64 * 4]


def test_real_examples(real_data):
    """CineMA's examples: columns of M&Ms run along (0.480, 0.862, −0.164) in DICOM's coordinates.

    Its third column goes 7.443 mm to the left, 4.987 to the front and 4.442 to the feet, against
    the normal, so that slices are reversed: the last of 14 comes first.
    """
    folder = real_data / "cmr" / "nifti"
    stack = one_stack(folder / "mnms")
    assert (stack.role, stack.shape, stack.spacing) == ("SAX", (2, 14, 192, 192), (1.0, 1.0))
    assert stack.axes[0] == pytest.approx([0.4798, 0.8620, -0.1637], abs=1e-4)
    assert np.diff(stack.positions) == pytest.approx([10] * 13)
    first = [-44.8628 + 13 * 7.4431, -68.8694 - 13 * 4.9867, 140.1645 - 13 * 4.4423]
    assert stack.origins[0] == pytest.approx(first, abs=2e-3)
    stored = np.asarray(nib.load(folder / "mnms" / "sax_es.nii.gz").dataobj)
    assert np.array_equal(stack.image(1, 0), stored[:, :, 13].T)
    assert [s.role for s in read_study(folder / "mnms2").stacks] == ["SAX", "4CH"]
    assert one_stack(folder / "acdc" / "sax_ed.nii.gz").shape == (1, 10, 192, 192)
    with pytest.raises(DataError, match="in 3 folders below it; give one of them"):
        read_study(folder)
