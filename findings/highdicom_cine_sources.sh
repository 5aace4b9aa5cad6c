#!/usr/bin/env bash
# highdicom cannot write a segmentation of a short-axis cine whose slices are series of their own, and
# frames of different segments share one reference to their source image.
#
# Scanners store each slice of a short-axis cine as a series. A DICOM Segmentation may refer to images
# of several series (PS3.3 C.12.4: one Referenced Series Sequence item for each), so two parallel
# slices from two series of one study, with one Frame of Reference, are expected to be accepted.
#
# Observed with highdicom 0.28.2, pydicom 3.0.2:
#   two slices, one series:      written
#   two slices, two series:      ValueError: Source images must all be part of the same series …
#   the SourceImageSequence items of the two segments at one position are the same object, so that
#   changing one frame's reference changes the other frame's.
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'highdicom==0.28.2' 'pydicom==3.0.2' 'numpy==2.4.6'
cat >"$folder/sources.py" <<'PY'
import sys
import warnings

import highdicom
import numpy as np
import pydicom
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

warnings.simplefilter("ignore")
STUDY, PLACE = generate_uid(), generate_uid()


def slice_at(position, series):
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = STUDY, series
    image.FrameOfReferenceUID, image.Modality = PLACE, "MR"
    image.PatientID, image.PatientName, image.PatientBirthDate = "1", "A^B", ""
    image.PatientSex, image.StudyID, image.StudyDate, image.StudyTime = "", "", "", ""
    image.AccessionNumber, image.ReferringPhysicianName, image.SeriesNumber = "", "", 1
    image.InstanceNumber, image.Rows, image.Columns = 1, 8, 8
    image.ImagePositionPatient = [0, 0, position]
    image.ImageOrientationPatient, image.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    image.SliceThickness, image.SamplesPerPixel, image.BitsAllocated = 8, 1, 16
    image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 15, 0
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = np.zeros((8, 8), np.uint16).tobytes()
    return image


def write(images):
    masks = np.ones((len(images), 8, 8, 2), np.uint8)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        "made up", codes.DCM.ArtificialIntelligence, "1"
    )
    parts = [
        SegmentDescription(
            number, f"part {number}", codes.SCT.Tissue, codes.SCT.Heart, "AUTOMATIC", algorithm
        )
        for number in (1, 2)
    ]
    return Segmentation(
        images, masks, "BINARY", parts, generate_uid(), 1, generate_uid(), 1, "a", "b", "1", "1"
    )


series = generate_uid()
written = write([slice_at(0, series), slice_at(10, series)])
sources = {}
for frame in written.PerFrameFunctionalGroupsSequence:
    position = tuple(frame.PlanePositionSequence[0].ImagePositionPatient)
    item = frame.DerivationImageSequence[0].SourceImageSequence[0]
    sources.setdefault(position, []).append(item)
shared = all(a is b for a, b in sources.values())
try:
    write([slice_at(0, generate_uid()), slice_at(10, generate_uid())])
    message = "written"
except ValueError as error:
    message = str(error)
print("highdicom", highdicom.__version__, "pydicom", pydicom.__version__)
print("two series:", message)
print("shared references:", shared)
sys.exit(0 if shared and "same series" in message else 1)
PY
"$folder/env/bin/python" "$folder/sources.py"
