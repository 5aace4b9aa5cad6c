#!/usr/bin/env bash
# One frame of an uncompressed single-bit image cannot be decoded by pydicom unless its pixels are a
# multiple of 8, although the whole file can.
#
# Frames of a DICOM Segmentation are packed without padding (PS3.5 section 8.1.1), so a frame of
# 13 × 11 pixels starts and ends within a byte. `Decoder.as_array(dataset, index=i)` is expected to
# equal frame i of `Decoder.as_array(dataset)`.
#
# Observed with pydicom 3.0.2, numpy 2.4.6, for a file of 8 frames:
#   as_array of all frames:          right
#   index 0 and 7:                   right
#   index 1 to 6:                    ValueError: cannot reshape array
#   iter_array:                      ValueError at the second frame
# With 16 × 8 pixels, every index is right.
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'pydicom==3.0.2' 'numpy==2.4.6'
cat >"$folder/frames.py" <<'PY'
import sys

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder, pack_bits
from pydicom.uid import ExplicitVRLittleEndian


def segmentation(rows, columns, frames=8):
    """A single-bit image and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 2, (frames, rows, columns), dtype=np.uint8)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.Rows, image.Columns, image.NumberOfFrames = rows, columns, frames
    image.BitsAllocated, image.BitsStored, image.HighBit = 1, 1, 0
    image.SamplesPerPixel, image.PixelRepresentation = 1, 0
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = pack_bits(pixels.ravel())
    return image, pixels


def results(rows, columns):
    image, pixels = segmentation(rows, columns)
    decoder = get_decoder(ExplicitVRLittleEndian)
    whole, _ = decoder.as_array(image)
    found = ["whole right" if np.array_equal(whole, pixels) else "whole wrong"]
    for index in range(len(pixels)):
        try:
            frame, _ = decoder.as_array(image, index=index)
            found.append("right" if np.array_equal(frame, pixels[index]) else "wrong")
        except ValueError as error:
            found.append("error" if "reshape" in str(error) else str(error))
    return found


print("pydicom", pydicom.__version__, "numpy", np.__version__)
odd, even = results(13, 11), results(16, 8)
print("13 × 11:", odd)
print("16 × 8: ", even)
same = odd == ["whole right", "right", *["error"] * 6, "right"]
same = same and even == ["whole right", *["right"] * 8]
sys.exit(0 if same else 1)
PY
"$folder/env/bin/python" "$folder/frames.py"
