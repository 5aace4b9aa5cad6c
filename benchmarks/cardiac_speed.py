"""Time from a DICOM study to its function table: this project against the pipeline of `myopari`.

Both sides use the same network, read the same short-axis series, run in processes of their own and
alternate. Imports are excluded; the memory is the peak above that after the imports.

python benchmarks/cardiac_speed.py STUDY --peer-python PYTHON [--rounds 3]

PYTHON has onnxruntime, scikit-image, pydicom and myopari==0.1.6 (installed with --no-deps).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

SIDES = ("peer", "extremes", "all")


def main() -> None:
    """Run the sides alternately and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_side(args.side, args.study)))
        return
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for round_ in range(args.rounds):
        for side in SIDES:
            python = args.peer_python if side == "peer" else sys.executable
            command = [python, __file__, str(args.study), "--side", side]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[side].append(json.loads(output.splitlines()[-1]))
            print(round_ + 1, side, results[side][-1], flush=True)
    for side in SIDES[1:]:
        pairs = zip(results["peer"], results[side], strict=True)
        ratios = sorted(peer["seconds"] / ours["seconds"] for peer, ours in pairs)
        memory = statistics.median(r["memory"] / r["pixels"] for r in results[side])
        differences = [r["ef"] - p["ef"] for r, p in zip(results[side], results["peer"],
                                                         strict=True)]  # fmt: skip
        print(
            f"{side}: {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f}), EF {differences[0]:+.2f} points, peak memory {memory:.1f} times "
            "the pixels in float32"
        )


def run_side(side: str, study: Path) -> dict[str, float]:
    """Measure one side in this process."""
    measure = measure_peer if side == "peer" else measure_ours
    prepared = measure(side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    ef, pixels = prepared(study)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "ef": ef, "memory": (peak - before) * 1024, "pixels": pixels * 4}


def measure_ours(side: str) -> Any:
    """Import this project and return its function from a study to EF."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch  # noqa: F401

    from xraygpt.cardiac.dicom_intake import read_dicom_study
    from xraygpt.cardiac.function import measure_function
    from xraygpt.cardiac.stack_segmentation import segment_extremes, segment_stack
    from xraygpt.segmentation.onnx_network import OnnxNetwork

    def run(study: Path) -> tuple[float, int]:
        read = read_dicom_study(study)
        pixels = sum(s.shape[0] * s.shape[1] * s.shape[2] * s.shape[3] for s in read.stacks)
        stack = read.with_role("SAX")[0]
        segment = segment_stack if side == "all" else segment_extremes
        function = measure_function(stack, segment(stack, OnnxNetwork.Config().build()))
        return function.left.ejection_fraction, pixels

    return run


def measure_peer(_: str) -> Any:
    """Import the wheel's processors, without its windows, and return its way to EF."""
    import numpy as np
    import pydicom

    spec = importlib.util.find_spec("myopari")
    assert spec is not None and spec.submodule_search_locations
    package = types.ModuleType("myopari")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["myopari"] = package
    from myopari.processors.SEGProcessor import SEG_module

    def run(study: Path) -> tuple[float, int]:
        frames: dict[float, list[Any]] = defaultdict(list)
        pixels = 0
        for file in sorted(study.rglob("*.dcm")):
            image = pydicom.dcmread(file)
            pixels += image.Rows * image.Columns
            if not any(view in image.SeriesDescription for view in ("2CH", "3CH", "4CH")):
                normal = np.cross(image.ImageOrientationPatient[:3],
                                  image.ImageOrientationPatient[3:])  # fmt: skip
                frames[round(float(normal @ image.ImagePositionPatient), 1)].append(image)
        slices = [sorted(frames[z], key=lambda i: float(i.TriggerTime)) for z in sorted(frames)]
        module, volumes = SEG_module(), []
        for phase in range(len(slices[0])):
            stack = [row[phase].pixel_array.T for row in slices]  # (x, y), as nibabel gives it
            labels = module.segment(np.stack(stack, axis=-1).astype(np.float32))
            volumes.append(int((labels == 3).sum()))
        return 100 * (max(volumes) - min(volumes)) / max(volumes), pixels

    return run


if __name__ == "__main__":
    main()
