"""Seconds per picture of `predict.py`, for two versions of the code that take turns.

    python benchmarks/decoding.py --before FOLDER --after FOLDER --input PICTURES [--batch 16]

FOLDER is a checkout of this project, or of an earlier version of it. Each side is one process that
loads the model and then waits. The two sides answer the same batch of pictures one after the other,
and take turns at going first. Reading the pictures is included; starting and loading are timed
separately, as they happen once. CPU seconds are printed for machines that others use as well. Both
sides name the random numbers after the pictures' files, so that equal programs write equal reports;
the number of differing reports is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Runs in the folder of either side, so it uses only what both versions have.
WORKER = """
import json, sys, time
from functools import partial
from pathlib import Path
from xraygpt.common.threads import limit_openmp_spinning
limit_openmp_spinning()
import torch
from xraygpt.common.config import load
from xraygpt.common.distributed import to_device
from xraygpt.experiment import Evaluation, build_predictor

config, pictures, out, *options = sys.argv[1:]
experiment = load(Evaluation, Path(config), options)
predictor = build_predictor(experiment, Path(pictures), output_dir=Path(out), device="cpu")
print(json.dumps(len(predictor.data)), flush=True)
for line in sys.stdin:
    start, cpu = time.perf_counter(), time.process_time()
    samples = [predictor.data[i] for i in json.loads(line)]
    batch = predictor.collate.prompts(samples)
    if "content_key" in batch:
        batch["content_key"] = [partial(str, name) for name in batch["sample_id"]]
    answers = predictor.task.predict(predictor.model, to_device(batch, torch.device("cpu")))
    times = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps([*times, [getattr(a, "text", a) for a in answers]]), flush=True)
"""


class Side:
    """One version of the code, in a process of its own."""

    def __init__(self, folder: Path, arguments: list[str], out: str) -> None:
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments[:2], out, *arguments[2:]],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.count: int = self._receive()
        self.startup = time.perf_counter() - start
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.texts: list[str] = []

    def answer(self, indices: list[int], *, record: bool = True) -> None:
        """Answer a batch, and keep its time per picture and its texts if `record`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(indices) + "\n")
        self.process.stdin.flush()
        seconds, cpu_seconds, texts = self._receive()
        if record:
            self.seconds.append(seconds / len(indices))
            self.cpu_seconds.append(cpu_seconds / len(indices))
            self.texts += texts

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a side has ended; run its command by itself to see why")
        return json.loads(line)


def measure(before: Side, after: Side, first: int, count: int, size: int) -> dict[str, Any]:
    """Answer `count` pictures in batches on both sides in turns, and summarise the times."""
    for side in (before, after):
        side.answer([first], record=False)  # warm-up
    for turn, start in enumerate(range(first, first + count, size)):
        indices = list(range(start, min(start + size, first + count)))
        for side in (before, after) if turn % 2 == 0 else (after, before):
            side.answer(indices)
        print(f"{indices[-1] + 1 - first}/{count}", file=sys.stderr)
    ratios = [b / a for b, a in zip(before.seconds, after.seconds, strict=True)]
    pairs = list(zip(before.texts, after.texts, strict=True))
    return {
        "pictures": len(pairs),
        "batch": size,
        "before": statistics.mean(before.seconds),
        "after": statistics.mean(after.seconds),
        "times": statistics.mean(before.seconds) / statistics.mean(after.seconds),
        "ratios": sorted(ratios),
        "cpu": [statistics.mean(side.cpu_seconds) for side in (before, after)],
        "startup": [before.startup, after.startup],
        "differing": sum(a != b for a, b in pairs),
    }


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="folder of the earlier code")
    parser.add_argument("--after", type=Path, default=Path(), help="folder of the later code")
    parser.add_argument("--input", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--cfg-path", default="eval_configs/xraygpt_mini.yaml")
    parser.add_argument("--first", type=int, default=0, help="index of the first picture")
    parser.add_argument("--count", type=int, default=40, help="number of pictures")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--options", nargs="*", default=[], help="key=value overrides of the YAML")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    arguments = [args.cfg_path, str(args.input.resolve()), *args.options]
    with tempfile.TemporaryDirectory() as out:
        before, after = (Side(f, arguments, out) for f in (args.before, args.after))
        try:
            count = min(args.count, before.count - args.first)
            row = measure(before, after, args.first, count, args.batch)
        finally:
            for side in (before, after):
                side.process.kill()
    ratios = row["ratios"]
    print(
        f"{row['pictures']} pictures in batches of {row['batch']}: {row['before']:.2f} s per "
        f"picture before, {row['after']:.2f} s after; {row['times']:.1f} times as fast (batches "
        f"{ratios[0]:.1f} to {ratios[-1]:.1f}); CPU seconds {row['cpu'][0]:.2f} and "
        f"{row['cpu'][1]:.2f}; {row['differing']} reports differ; start "
        f"{row['startup'][0]:.1f} s and {row['startup'][1]:.1f} s"
    )
    if args.out:
        args.out.write_text(json.dumps(row, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
