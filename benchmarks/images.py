"""Images per second from file to tensor: JPEG, JPEG in draft mode, PNG and DICOM.

    python benchmarks/images.py [--count 20] [--rounds 5]

A SYNTHETIC picture of 2,000 x 2,400 pixels is written once in each format and read with the image
processor of a 224-pixel encoder, the formats in turn, in one process. Ratios are relative to the
JPEG decoded in full.
"""

from __future__ import annotations

import argparse
import json
import statistics
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


def write_pictures(folder: Path) -> dict[str, Path]:
    """Write one picture in three formats; returns the file of each case."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:2400, 0:2000] / 2400
    picture = 0.4 + 0.3 * np.sin(9 * x) * np.cos(7 * y) + rng.normal(0, 0.02, x.shape)
    picture = picture.clip(0, 1)
    image = Image.fromarray((picture * 255).astype(np.uint8))
    paths = {"JPEG": folder / "picture.jpg", "PNG": folder / "picture.png"}
    paths["DICOM"] = folder / "picture.dcm"
    image.save(paths["JPEG"], quality=95)
    image.save(paths["PNG"])
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    data.Rows, data.Columns = picture.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = (picture * 4095).astype(np.uint16).tobytes()
    data.save_as(paths["DICOM"], enforce_file_format=True)
    return {**paths, "JPEG, draft": paths["JPEG"]}


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker of the data loader
    full, draft = (XrayImage.Config(draft=d).build(image_spec=SPEC) for d in (False, True))
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder))
        for number in range(args.rounds + 1):  # the first round warms up
            for kind, path in paths.items():
                processor = draft if kind.endswith("draft") else full
                start = time.perf_counter()
                for _ in range(args.count):
                    read_media(MediaRef(path), "", processor)
                if number:
                    seconds = (time.perf_counter() - start) / args.count
                    times.setdefault(kind, []).append(seconds)
    for kind, values in times.items():
        ratios = [a / b for a, b in zip(times["JPEG"], values, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{kind}: {1 / statistics.median(values):.1f} per second, "
            f"{statistics.median(ratios):.2f} times the JPEG ({low:.2f} to {high:.2f})"
        )
    if args.out:
        args.out.write_text(json.dumps(times, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
