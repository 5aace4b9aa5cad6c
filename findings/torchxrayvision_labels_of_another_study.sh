#!/usr/bin/env bash
# torchxrayvision's CheXpert loader gives an image labels of another study of the same patient.
#
# In CheXpert's table, an empty cell means that the report of this study does not mention the finding.
# With unique_patients=True, the default, CheX_Dataset keeps one image of each patient. One expects
# that image's row. It groups by patient and takes pandas' first(), which takes the first value of
# each column that is not empty. So the path is that of the first study, and each empty label is
# filled from a later study, which was perhaps years apart. No warning.
#
# Valid input here: a table of two studies of one patient, in CheXpert's columns. The first study
# mentions a fracture alone, the second edema alone.
#
# Observed with torchxrayvision 1.5.7, pandas 3.1.1:
#   path:     train/patient00001/study1/view1_frontal.jpg
#   Fracture: 1.0 (of study 1)
#   Edema:    1.0 (expected: nan; it is that of study 2)
# With unique_patients=False, Edema of the first row is nan.
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'torchxrayvision==1.5.7' 'pandas==3.1.1' \
    'torch==2.15.0' 'torchvision==0.29.2'
cat >"$folder/labels.py" <<'PY'
import math
import sys
from pathlib import Path

import pandas
import torchxrayvision

FINDINGS = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
]
folder = Path(sys.argv[1])
table = folder / "train.csv"
lines = [",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS])]
for study, finding in ((1, "Fracture"), (2, "Edema")):
    path = f"CheXpert-v1.0-small/train/patient00001/study{study}/view1_frontal.jpg"
    labels = ["1.0" if name == finding else "" for name in FINDINGS]
    lines.append(",".join([path, "Female", "50", "Frontal", "PA", *labels]))
table.write_text("\n".join(lines) + "\n")


def first_row(unique_patients):
    """Return path, Fracture and Edema of the first image."""
    data = torchxrayvision.datasets.CheX_Dataset(
        imgpath=str(folder), csvpath=str(table), unique_patients=unique_patients
    )
    labels = dict(zip(data.pathologies, data.labels[0]))
    return data.csv["Path"][0], float(labels["Fracture"]), float(labels["Edema"])


print("torchxrayvision", torchxrayvision.__version__, "pandas", pandas.__version__)
unique, every = first_row(True), first_row(False)
print("unique_patients=True: ", unique)
print("unique_patients=False:", every)
same = "study1" in unique[0] and unique[1:] == (1.0, 1.0) and every[1] == 1.0
sys.exit(0 if same and math.isnan(every[2]) else 1)
PY
"$folder/env/bin/python" "$folder/labels.py" "$folder"
