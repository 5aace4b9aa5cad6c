#!/usr/bin/env bash
# nibabel turns a voxel size of 0 in a NIfTI header into 1 mm and a negative one into a positive one.
#
# Converters write 0 into pixdim if they do not know the distance between slices. The NIfTI-1 standard
# gives 0 no meaning as a size, so a reader is expected to return it or to raise an error: any volume
# computed from it is unknown. Valid input here: a header whose sform has the true distances.
#
# Observed with nibabel 5.4.2, numpy 2.4.6:
#   pixdim in the file:                  1.5  1.5   0     and  1.5  1.5  -8
#   header.get_zooms() after load:       1.5  1.5   1     and  1.5  1.5   8
#   distances by the sform:              1.5  1.5   8
#   exception:                           none; Python warnings: none; one log record
# A volume computed from get_zooms() is an eighth of the true one.
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'nibabel==5.4.2' 'numpy==2.4.6'
cat >"$folder/zooms.py" <<'PY'
import struct
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np

folder = Path(sys.argv[1])
PIXDIM_3 = 76 + 4 * 3  # bytes from the start of the header


def zooms(size):
    """Write a volume whose pixdim[3] is `size`, and return what nibabel reads."""
    image = nibabel.Nifti1Image(np.ones((4, 4, 3), np.int16), np.diag([1.5, 1.5, 8, 1]))
    image.set_sform(image.affine, code=1)
    image.set_qform(None, code=0)
    path = folder / "volume.nii"
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    content[PIXDIM_3 : PIXDIM_3 + 4] = struct.pack("<f", size)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = nibabel.load(path)
    by_sform = nibabel.affines.voxel_sizes(loaded.affine)
    return [float(v) for v in loaded.header.get_zooms()], [float(v) for v in by_sform]


print("nibabel", nibabel.__version__, "numpy", np.__version__)
zero, negative = zooms(0.0), zooms(-8.0)
print("pixdim 0: ", zero)
print("pixdim -8:", negative)
same = zero == ([1.5, 1.5, 1.0], [1.5, 1.5, 8.0]) and negative == ([1.5, 1.5, 8.0],) * 2
sys.exit(0 if same else 1)
PY
"$folder/env/bin/python" "$folder/zooms.py" "$folder"
