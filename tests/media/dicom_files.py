"""Helpers that build DICOM files for tests; all files are generated and contain no patient data."""

from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from xraygpt.media.pixels import PixelImage, read_image

EXPLICIT, IMPLICIT = uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian
# 12 bit, 0..4080, each value four times, so that the tail (1 of 1,024 pixels) clips nothing
RAMP = (np.arange(32 * 32, dtype=np.uint16) // 4 * 16).reshape(32, 32)


def dataset(stored: Any, bits: int = 0, **elements: Any) -> Dataset:
    """Build a secondary capture of stored values: (H, W), (H, W, 3), or (F, H, W) for frames."""
    array = np.asarray(stored)
    color = array.ndim > 2 and array.shape[-1] == 3
    frames = array.ndim - (3 if color else 2)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    ds.SOPClassUID, ds.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3.4"
    ds.PatientName, ds.PatientID = "Doe^Secret", "SECRET-ID"
    ds.Rows, ds.Columns = array.shape[frames : frames + 2]
    ds.SamplesPerPixel = 3 if color else 1
    ds.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        ds.PlanarConfiguration = 0
    if frames:
        ds.NumberOfFrames = array.shape[0]
    ds.BitsAllocated = array.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(array.dtype.kind == "i")
    data = array.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def save(path: Path, ds: Dataset, syntax: uid.UID = EXPLICIT) -> Path:
    ds.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases are invalid on purpose
        ds.save_as(path, enforce_file_format=True)
    return path


def read(folder: Path, ds: Dataset, syntax: uid.UID = EXPLICIT, **options: Any) -> PixelImage:
    return read_image(save(folder / "x.dcm", ds, syntax), **options)


def row(dtype: str, *values: int) -> np.ndarray:
    return np.array([values], dtype)


u8, u16, u32, i16 = (partial(row, dtype) for dtype in ("u1", "u2", "u4", "i2"))
MONO1 = {"PhotometricInterpretation": "MONOCHROME1"}
INVERSE, IDENTITY = ({"PresentationLUTShape": name} for name in ("INVERSE", "IDENTITY"))


def window(center: Any, width: Any, function: str | None = None) -> dict[str, Any]:
    named = {"VOILUTFunction": function} if function else {}
    return {"WindowCenter": center, "WindowWidth": width} | named


def exact(center: float, width: float) -> dict[str, Any]:
    return window(center, width, "LINEAR_EXACT")


def rescale(slope: float, intercept: float) -> dict[str, Any]:
    return {"RescaleSlope": slope, "RescaleIntercept": intercept}


def lut(descriptor: list[int], data: Any, vr: str = "US") -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if descriptor[1] < 0 else "US", descriptor)
    item.add_new("LUTData", vr, data)
    return [item]


def voi(descriptor: list[int], data: Any, vr: str = "US") -> dict[str, Any]:
    return {"VOILUTSequence": lut(descriptor, data, vr)}


def padding(value: int, limit: int | None = None) -> dict[str, Any]:
    limits = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    return {"PixelPaddingValue": value} | limits


def jpeg_baseline(value: int, folder: Path) -> Path:
    """A flat 8-bit frame, 16 x 16, compressed with Pillow: lossless for flat blocks."""
    buffer = io.BytesIO()
    Image.new("L", (16, 16), value).save(buffer, "JPEG", quality=100)
    ds = dataset(np.full((16, 16), value, np.uint8), WindowCenter=128, WindowWidth=256)
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].is_undefined_length = True
    return save(folder / "x.dcm", ds, uid.JPEGBaseline8Bit)


def compressed(folder: Path, syntax: uid.UID = uid.JPEG2000Lossless) -> Path:
    ds = dataset(RAMP, 12)
    ds.compress(syntax, generate_instance_uid=False)
    return save(folder / "x.dcm", ds, syntax)
