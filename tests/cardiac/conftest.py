"""Small cine studies as DICOM files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

STUDY = generate_uid(entropy_srcs=["study"])
FRAME_OF_REFERENCE = generate_uid(entropy_srcs=["frame of reference"])


def write_frame(
    folder: Path,
    *,
    slice_: int = 0,
    phase: int = 0,
    gap: float = 10.0,
    phases: int = 5,
    name: str = "cine",
    value: int | None = None,
    series: str = "",
    **elements: object,
) -> Path:
    """Write one 16 × 12 image whose pixels say its slice and phase; None removes an element."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    pixels = np.full((16, 12), 100 * slice_ + phase + 1 if value is None else value, np.uint16)
    values: dict[str, object] = {
        "SOPClassUID": MRImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": STUDY, "SeriesInstanceUID": generate_uid(
            entropy_srcs=[name, series or str(slice_)]
        ), "SeriesNumber": slice_ + 1, "SeriesDescription": name, "Modality": "MR",
        "Rows": 16, "Columns": 12, "PixelSpacing": [1.5, 1.5], "SliceThickness": 6,
        "ImagePositionPatient": [0, 0, gap * slice_], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "FrameOfReferenceUID": FRAME_OF_REFERENCE, "PatientID": "P1", "PatientName": "Doe^Jane",
        "TriggerTime": 800 * phase / phases, "NominalInterval": 800, "BitsAllocated": 16,
        "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "PixelData": pixels.tobytes(), **elements,
    }  # fmt: skip
    for keyword, item in values.items():
        if item is not None:
            setattr(image, keyword, item)
    number = len(list(folder.iterdir()))
    file = folder / f"{(number * 37) % 101:03d}.dcm"  # the order of names says nothing
    image.save_as(file, enforce_file_format=True)
    return file


@pytest.fixture
def cine(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a stack of 4 slices with 5 phases."""

    def write(
        skip: Callable[[int, int], bool] = lambda slice_, phase: False,
        change: Callable[[int, int], dict[str, object]] = lambda slice_, phase: {},
        slices: int = 4,
    ) -> Path:
        for phase in (3, 0, 4, 1, 2):
            for slice_ in reversed(range(slices)):
                if not skip(slice_, phase):
                    settings = {"slice_": slice_, "phase": phase, **change(slice_, phase)}
                    write_frame(tmp_path, **settings)  # type: ignore[arg-type]
        return tmp_path

    return write
