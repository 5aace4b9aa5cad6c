"""DICOM files that must be refused, and protection of the patient data in them."""

from __future__ import annotations

import logging
import random
import struct
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from tests.media.damage import check_damaged_copies
from tests.media.dicom_files import (
    EXPLICIT,
    MONO1,
    RAMP,
    compressed,
    dataset,
    jpeg_baseline,
    lut,
    read,
    rescale,
    save,
    u8,
    u16,
    voi,
    window,
)
from xraygpt.common.errors import ImageError
from xraygpt.media.pixels import ReadLimits, frame_count, read_image

# ---- DICOM that is refused ---------------------------------------------------------------------


def without(keyword: str) -> Dataset:
    ds = dataset(u8(0, 1))
    delattr(ds, keyword)
    return ds


REFUSED: dict[str, tuple[Dataset, str]] = {
    "no pixel data": (without("PixelData"), "no PixelData"),
    "no photometric": (without("PhotometricInterpretation"), "lacks PhotometricInterpretation"),
    "no rows": (without("Rows"), "lacks Rows"),
    "zero rows": (dataset(u8(0, 1), Rows=0), "Rows that is not a whole number"),
    "short": (dataset(u8(0, 1), Rows=9), r"cut short: PixelData has 2 of 18 bytes"),
    "frames missing": (dataset(u8(0, 1), NumberOfFrames=5), "cut short: PixelData has 2 of 10"),
    "negative frames": (dataset(u8(0, 1), NumberOfFrames=-1), "NumberOfFrames that is not a whole"),
    "unknown photometric": (
        dataset(u8(0, 1), PhotometricInterpretation="HSV"), "unknown Photometric"
    ),
    "samples": (dataset(u8(0, 1), SamplesPerPixel=3), "3 samples per pixel, which MONOCHROME2"),
    "bits": (dataset(u8(0, 1), BitsStored=12), r"high bit \+ 1 and bits allocated, \[12, 8"),
    "high bit": (dataset(u16(0, 1), 16, HighBit=11), r"\[16, 12, 16\]"),
    "slope 0": (dataset(u8(0, 1), RescaleSlope=0), "RescaleSlope of 0"),
    "table without descriptor": (
        dataset(u8(0, 1), VOILUTSequence=[Dataset()]), "without its descriptor"
    ),
    "table cut short": (
        dataset(u8(0, 1), **voi([9, 0, 16], [1, 2, 3])), "of 3 entries, not 9"
    ),
    "table of 17 bits": (
        dataset(u8(0, 1), ModalityLUTSequence=lut([2, 0, 17], [1, 2])), "of 17 bits"
    ),
    "unknown voi function": (
        dataset(u8(0, 1), **window(1, 2, "LOG")), "VOI LUT Function"
    ),
    "ybr of 16 bits": (
        dataset(np.zeros((1, 2, 3), np.uint16), PhotometricInterpretation="YBR_FULL"), "YBR of more"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    ds, message = REFUSED[name]
    path = save(tmp_path / "x.dcm", ds)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))
    assert "ecret" not in str(caught.value)
    assert caught.value.__suppress_context__  # hides pydicom's traceback


def test_invalid_window_argument_is_refused(tmp_path: Path) -> None:
    for invalid in ((1.0, 0.5), (1.0, 0.0), (float("nan"), 5.0), (0.0, float("inf"))):
        with pytest.raises(ImageError, match=r"window"):
            read(tmp_path, dataset(u8(0, 1)), window=invalid)


@pytest.mark.parametrize(
    "content", [b"a report and no image\n" * 9, b"<!DOCTYPE html><html></html>" * 9, b"\0" * 500]
)
@pytest.mark.parametrize("name", ["x.dcm", "x.DICOM"])
def test_other_content_named_dicom(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match="contains no DICOM image") as caught:
        read_image(tmp_path / name)
    assert "report" not in str(caught.value).removeprefix(str(tmp_path))


def test_dicomdir(tmp_path: Path) -> None:
    ds = dataset(u8(0, 1))
    ds.SOPClassUID = uid.MediaStorageDirectoryStorage
    with pytest.raises(ImageError, match="is a DICOMDIR"):
        read(tmp_path, ds)


def test_unknown_transfer_syntax(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", dataset(u8(0, 1)))
    valid = b"1.2.840.10008.1.2.1\0"
    path.write_bytes(path.read_bytes().replace(valid, b"1.2.840.10008.1.2.9\0"))
    with pytest.raises(ImageError, match="no known transfer syntax"):
        read_image(path)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.9\0", b"1.2.840.99999.1.2.1\0"))
    with pytest.raises(ImageError, match="no known transfer syntax"):
        read_image(path)


def test_video_is_not_supported(tmp_path: Path) -> None:
    ds = dataset(RAMP, 12)
    ds.PixelData = encapsulate([b"\0" * 8])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(ImageError, match=r"MPEG2.*not supported; export the file uncompressed"):
        read(tmp_path, ds, uid.MPEG2MPML)


def test_huge_header_is_refused_before_decoding(tmp_path: Path) -> None:
    huge = dataset(u8(0, 1), Rows=30_000, Columns=30_000)
    with pytest.raises(ImageError, match=r"30000 x 30000 pixels of 1 sample.*100,000,000"):
        read(tmp_path, huge)
    # 65535 * 65535 * 3 * (2**31 - 1) is about 2.8e19, past 64 bits
    ds = dataset(np.zeros((1, 1, 3), np.uint8), NumberOfFrames=2**31 - 1, Rows=65535, Columns=65535)
    with pytest.raises(ImageError, match="over the limit"):
        read(tmp_path, ds, frame=None)


def test_only_requested_frames_count_towards_the_limit(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", dataset(np.zeros((10, 4, 5), np.uint8)))
    limits = ReadLimits(max_pixels=199)
    assert read_image(path, frame=9, limits=limits).pixels.shape == (4, 5)
    with pytest.raises(ImageError, match=r"in 10 frame"):
        read_image(path, frame=None, limits=limits)
    assert read_image(path, frame=None, limits=ReadLimits(max_pixels=200)).pixels.shape[0] == 10


def test_deflate_bomb(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.dcm",
        dataset(np.zeros((1000, 1000), np.uint8)),
        uid.DeflatedExplicitVRLittleEndian,
    )
    assert path.stat().st_size < 5_000
    with pytest.raises(ImageError, match=r"inflates to more than the limit of 500,000 bytes"):
        read_image(path, limits=ReadLimits(max_file_bytes=500_000))
    with pytest.raises(ImageError, match="inflates"):
        frame_count(path, limits=ReadLimits(max_file_bytes=500_000))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match="deflated DICOM that is cut short"):
        read_image(path)


def test_codestream_larger_than_its_header_is_refused_before_decoding(tmp_path: Path) -> None:
    path = compressed(tmp_path)
    data = bytearray(path.read_bytes())
    siz = data.index(b"\xff\x4f\xff\x51")
    assert struct.unpack(">II", data[siz + 8 : siz + 16]) == (32, 32)
    data[siz + 8 : siz + 16] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"\(60000, 60000, 1\).*inside, but the header says"):
        read_image(path)
    path = jpeg_baseline(9, tmp_path)
    path.write_bytes(
        path.read_bytes().replace(b"\x08\0\x10\0\x10\x01", b"\x08\xff\xff\xff\xff\x01")
    )
    with pytest.raises(ImageError, match=r"\(65535, 65535, 1\).*inside"):
        read_image(path)


def test_codestream_cut_short_is_refused(tmp_path: Path) -> None:
    """openjpeg silently decodes half a codestream to half an image."""
    ds = dataset(RAMP, 12)
    ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    frame = ds.PixelData[16:]  # after the empty offset table and the item header
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(ImageError, match="no end marker"):
        read(tmp_path, ds, uid.JPEG2000Lossless)


@pytest.mark.parametrize("syntax", [EXPLICIT, uid.JPEG2000Lossless, uid.RLELossless])
@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.97])
def test_truncated_files(syntax: uid.UID, fraction: float, tmp_path: Path) -> None:
    path = compressed(tmp_path, syntax) if syntax.is_encapsulated else None
    path = path or save(tmp_path / "x.dcm", dataset(RAMP, 12))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ImageError, match=r"cut short|lacks"):
        read_image(path)


# ---- patient data -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*VR CS")  # pydicom, on writing
def test_meta_describes_the_picture_and_not_the_patient(tmp_path: Path) -> None:
    ds = dataset(RAMP, 12, **MONO1)
    ds.Modality, ds.ViewPosition, ds.ImageLaterality = "DX", "PA", "U"
    ds.BodyPartExamined = "Mr Doe's chest"  # not a code string, so free text, so dropped
    ds.PixelSpacing, ds.ImagerPixelSpacing = [0.14, 0.15], [0, 0]
    assert dict(read(tmp_path, ds).meta) == {
        "rows": 32,
        "columns": 32,
        "frames": 1,
        "photometric": "MONOCHROME1",
        "transfer_syntax": "Explicit VR Little Endian",
        "modality": "DX",
        "view_position": "PA",
        "laterality": "U",
        "pixel_spacing": (0.14, 0.15),
        "voi": "range",
        "window": (2040.5, 4081),
        "values": (0, 4080),
    }


@pytest.mark.filterwarnings("ignore:.*VR CS")  # pydicom, on writing
def test_no_warnings_and_no_log_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ds = dataset(RAMP, 12)
    ds.PixelData += b"\0" * 6  # pydicom warns of excess padding
    ds.Modality = "secret, and longer than a code string"  # and of this
    path = save(tmp_path / "x.dcm", ds)
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(compressed(tmp_path / "..").read_bytes().replace(b"\xff\x93", b"\xff\x00"))
    before = list(warnings.filters)
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(path)
        with pytest.raises(ImageError):
            read_image(broken)  # pydicom logs the decoder's traceback
    assert not caught
    assert not [record for record in caplog.records if record.name != "asyncio"]
    assert warnings.filters == before
    assert logging.getLogger("pydicom").propagate


def test_threads_restore_the_warning_filters(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", dataset(RAMP, 12))
    before, results = list(warnings.filters), []

    def read_repeatedly() -> None:
        for _ in range(10):
            results.append(read_image(path).pixels)

    threads = [threading.Thread(target=read_repeatedly) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 60
    assert all((pixels == results[0]).all() for pixels in results)
    assert warnings.filters == before
    assert logging.getLogger("pydicom").propagate


@pytest.mark.parametrize("syntax", [EXPLICIT, uid.RLELossless, uid.JPEG2000Lossless])
def test_random_damage_of_a_dicom(syntax: uid.UID, tmp_path: Path) -> None:
    elements = voi([3, 0, 12], [0, 9, 99]) | window(9, 9) | rescale(1, 0)
    ds = dataset(RAMP, 12, **elements)
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
    path = save(tmp_path / "x.dcm", ds, syntax)
    check_damaged_copies(path, path.read_bytes(), random.Random(20), start=128)
