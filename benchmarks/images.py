"""Images a second from file to tensor: JPEG, the same in draft mode, PNG and DICOM.

    python benchmarks/images.py [--count 20] [--rounds 5]

A SYNTHETIC film of 2,000 x 2,400 pixels is written once in each format and read with the image
processor of a 224-pixel encoder, the formats in turn, in one process. Ratios are against the whole
JPEG.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from xraygpt.datasets.base import read_media
from xraygpt.media.base import MediaRef
from xraygpt.processors.image import ImageSpec, XrayImage

SPEC = ImageSpec(image_size=224, mean=(0.5,), std=(0.5,), tokens_per_image=1)


def films(folder: Path) -> dict[str, Path]:
    """One film in three formats."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:2400, 0:2000] / 2400
    film = 0.4 + 0.3 * np.sin(9 * x) * np.cos(7 * y) + rng.normal(0, 0.02, x.shape)
    film = film.clip(0, 1)
    image = Image.fromarray((film * 255).astype(np.uint8))
    paths = {"JPEG": folder / "film.jpg", "PNG": folder / "film.png", "DICOM": folder / "film.dcm"}
    image.save(paths["JPEG"], quality=95)
    image.save(paths["PNG"])
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    data.Rows, data.Columns = film.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = (film * 4095).astype(np.uint16).tobytes()
    data.save_as(paths["DICOM"], enforce_file_format=True)
    return {**paths, "JPEG, draft": paths["JPEG"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as a loader's worker has it
    plain, draft = (XrayImage.Config(draft=d).build(image_spec=SPEC) for d in (False, True))
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        paths = films(Path(name))
        for number in range(given.rounds + 1):  # the first warms up
            for kind, path in paths.items():
                processor = draft if kind.endswith("draft") else plain
                began = time.perf_counter()
                for _ in range(given.count):
                    read_media(MediaRef(path), "", processor)
                if number:
                    taken.setdefault(kind, []).append((time.perf_counter() - began) / given.count)
    whole = taken["JPEG"]
    for kind, each in taken.items():
        times = [a / b for a, b in zip(whole, each, strict=True)]
        low, _, high = statistics.quantiles(times, n=4)
        print(
            f"{kind}: {1 / statistics.median(each):.1f} a second, {statistics.median(times):.2f} "
            f"times the JPEG ({low:.2f} to {high:.2f})"
        )
    if given.out:
        given.out.write_text(json.dumps(taken, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
