#!/usr/bin/env bash
# pydicom cannot compress small images losslessly as JPEG 2000.
#
# JPEG 2000 (ISO/IEC 15444-1) has no smallest image: a small one just has fewer resolution levels.
# Dataset.compress() is expected to write any image. The encoder asks for six levels whatever the size,
# and OpenJPEG refuses that below 32 pixels. Crops, localizers and test images are that small.
#
# Observed with pydicom 3.0.2, pylibjpeg-openjpeg 2.6.0, 8-bit grey images of 96 columns:
#   16 rows: RuntimeError
#   31 rows: RuntimeError
#   32 rows: compressed, and read back unchanged
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'pydicom==3.0.2' 'pylibjpeg==2.1.0' 'pylibjpeg-openjpeg==2.6.0' 'numpy==2.4.6'
cat >"$folder/run.py" <<'PY'
import logging
import sys

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

logging.disable(logging.CRITICAL)
print("pydicom", pydicom.__version__)
found = {}
for rows in (16, 31, 32):
    pixels = (np.arange(rows * 96) % 251).astype(np.uint8).reshape(rows, 96)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = rows, 96, 1
    ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelData = pixels.tobytes()
    try:
        ds.compress(uid.JPEG2000Lossless)
        found[rows] = bool((ds.pixel_array == pixels).all())
        print(rows, "rows: compressed, unchanged:", found[rows])
    except RuntimeError as error:
        found[rows] = None
        print(rows, "rows: RuntimeError:", str(error).splitlines()[-1][-120:])
sys.exit(0 if found == {16: None, 31: None, 32: True} else 1)
PY
"$folder/env/bin/python" "$folder/run.py"
