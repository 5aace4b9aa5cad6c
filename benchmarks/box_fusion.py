"""Weighted boxes fusion of all VinDr-CXR boxes: this project against ensemble-boxes 1.0.9.

python benchmarks/box_fusion.py --peer-python PYTHON [--table vinbigdata-train.csv.gz] [--rounds 5]

PYTHON belongs to an environment with ensemble-boxes==1.0.9. The table has the columns of
VinDr-CXR's annotations; default: the one inside the installed torchxrayvision. It has no image
sizes, so each image gets a MADE-UP size that contains its boxes. Both sides run alternately, on one
thread, in processes of their own; time is that of the fusion alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

REPO = Path(__file__).parent.parent
THRESHOLD = 0.1


def main() -> None:
    """Run both sides alternately and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(*args.run)
        return
    if args.peer_python is None:
        parser.error("--peer-python is missing")
    with tempfile.TemporaryDirectory() as folder:
        groups = Path(folder) / "groups.json"
        groups.write_text(json.dumps(read_groups(args.table or default_table())))
        compare(Path(folder), groups, args)


def compare(folder: Path, groups: Path, args: argparse.Namespace) -> None:
    """Alternate the sides; print the ratio of medians and the largest difference."""
    sides = {"ours": sys.executable, "peer": args.peer_python}
    rows: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, python in sides.items():
            out = folder / "out.json"
            command = [python, str(Path(__file__).resolve()), "--run", side, groups, out]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([str(part) for part in command], check=True, env=env, cwd=folder)
            rows[side].append(json.loads(out.read_text()))
    times = {side: statistics.median(row["seconds"] for row in rows[side]) for side in sides}
    ours, peer = rows["ours"][0]["boxes"], rows["peer"][0]["boxes"]
    gap = max(difference(a, b) for a, b in zip(ours, peer, strict=True))
    print(f"{len(ours)} pairs of image and finding, {sum(map(len, ours))} fused boxes")
    print(f"{times['peer'] / times['ours']:.1f} times as fast as ensemble-boxes")
    print(f"largest difference of a coordinate: {gap:.1e}")


def difference(ours: list, peer: list) -> float:
    """Return the largest difference after pairing each box with the closest one."""
    if len(ours) != len(peer):
        return math.inf
    return max(
        min(max(abs(a - b) for a, b in zip(box, other, strict=True)) for other in peer)
        for box in ours
    )


def read_groups(table: Path) -> list:
    """Return the boxes of each image and finding, normalised to made-up sizes."""
    sys.path.insert(0, str(REPO))
    from xraygpt.instructions.tables import Tables

    columns = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
    boxes = defaultdict(list)
    extents: dict[str, list[float]] = defaultdict(lambda: [1.0, 1.0])
    with Tables(":memory:") as tables:
        tables.load_csv("boxes", table, columns)
        for image, name, *corners in tables.rows("SELECT * FROM boxes WHERE x_min IS NOT NULL"):
            values = [float(value) for value in corners]
            extents[image] = [max(extents[image][0], values[2]), max(extents[image][1], values[3])]
            boxes[image, name].append(values)
    return [
        [[x0 / w, y0 / h, x1 / w, y1 / h] for x0, y0, x1, y1 in group]
        for (image, _), group in boxes.items()
        for w, h in [[1.05 * side for side in extents[image]]]
    ]


def default_table() -> Path:
    """Return the table inside torchxrayvision, which is not imported."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.origin is None:
        sys.exit("torchxrayvision is not installed; give --table")
    return Path(spec.origin).parent / "data" / "vinbigdata-train.csv.gz"


def run(side: str, groups: str, out: str) -> None:
    """Fuse all groups on one side."""
    data = json.loads(Path(groups).read_text())
    if side == "ours":
        sys.path.insert(0, str(REPO))
        from xraygpt.boxes.fusion import fuse_boxes

        start = time.perf_counter()
        fused = [[each.box for each in fuse_boxes(g, threshold=THRESHOLD)] for g in data]
        seconds = time.perf_counter() - start
    else:
        from ensemble_boxes import weighted_boxes_fusion

        start = time.perf_counter()
        found = [
            weighted_boxes_fusion(
                [[box] for box in g], [[1.0]] * len(g), [[0]] * len(g), iou_thr=THRESHOLD
            )[0]
            for g in data
        ]
        seconds = time.perf_counter() - start
        fused = [boxes.tolist() for boxes in found]
    Path(out).write_text(json.dumps({"seconds": seconds, "boxes": fused}))


if __name__ == "__main__":
    main()
