"""Files that are refused or cause a warning, with the expected messages."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset

from tests.conftest import toy_image
from tests.media.dicom_files import dataset, save


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(height * (width + 1) if width * height < 10**6 else 4096))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(toy_image("left", 3)).save(buffer, kind, **options)
    return buffer.getvalue()


def _without_pixels(sop: str, modality: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop
    ds.SOPInstanceUID, ds.Modality, ds.PatientName = "1.2.3", modality, "Doe^Secret"
    return ds


def refused_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (file, part of the error message)."""
    grey = toy_image("left", 3)
    frames = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    gif = io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    files = {
        "text.png": (b"this is not an image", "is not a PNG, JPEG or DICOM file"),
        "cut.jpg": (_encoded("JPEG")[:300], "corrupt or cut short"),
        "cut.png": (_encoded("PNG")[:300], "corrupt or cut short"),
        "animated.gif": (gif.getvalue(), "is not a PNG, JPEG or DICOM file"),
        "bomb.png": (_png(60000, 60000), "more than Pillow's limit"),
        "large.png": (_png(9000, 9000), "over the limit of 50,000,000"),
        "empty.dcm": (b"", "is empty"),
        "page.html": (b"<script>alert(1)</script>", "is not a PNG, JPEG or DICOM file"),
    }
    result = {}
    for name, (content, message) in files.items():
        (folder / name).write_bytes(content)
        result[name] = (folder / name, message)
    for name, sop, modality, message in (
        ("nopixels.dcm", uid.CTImageStorage, "CT", "contains no DICOM image"),
        ("struct.dcm", uid.RTStructureSetStorage, "RTSTRUCT", "contains no DICOM image"),
        ("DICOMDIR", uid.MediaStorageDirectoryStorage, "OT", "is a DICOMDIR"),
    ):
        result[name] = (save(folder / name, _without_pixels(sop, modality)), message)
    short = dataset(grey.astype(np.uint16))
    short.PixelData = short.PixelData[:100]
    result["short.dcm"] = (save(folder / "short.dcm", short), "is cut short")
    return result


def files_with_warnings(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (file that opens, part of the warning)."""
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16)
    colour = np.zeros((64, 64, 3), np.uint8)
    colour[:, 20:40] = (200, 30, 30)
    ct = dataset(ramp, 12, Modality="CT", RescaleIntercept="-1024", RescaleSlope="1")
    return {
        "ct.dcm": (save(folder / "ct.dcm", ct), "computed tomography (CT)"),
        "us.dcm": (
            save(folder / "us.dcm", dataset(colour, Modality="US")),
            "ultrasound (US). It is in colour",
        ),
        "knee.dcm": (
            save(folder / "knee.dcm", dataset(ramp, 12, Modality="DX", BodyPartExamined="KNEE")),
            "shows knee",
        ),
    }  # fmt: skip
