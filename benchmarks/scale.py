"""Memory and start of a training on a small and on a large corpus.

    python benchmarks/scale.py [--records 1000 50000] [--rounds 5]

Each corpus is generated: reports of phantom sentences, 64 images that all records share. A `tiny`
model is trained for some steps, in a process of its own; said are the seconds before the first
step, and the memory that no file stands for (anonymous, after the last step) of the training
process. Sizes take turns; said are medians, the least and the most.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
YAML = """
model: {{arch: xraygpt, model_type: tiny, prompt_template: xraygpt}}
datasets:
  many:
    builder: records
    storage: {storage}
    annotations: rows.jsonl
    target: report
    split: {{train: [train], val: [val]}}
run:
  task: report_generation
  output_dir: {storage}/output
  device: cpu
  max_steps: 20
  warmup_steps: 0
  save_every: 0
  eval_every: 0
  batch_size_train: 8
"""
RUN = """
import json, sys, time
began = time.perf_counter()
from pathlib import Path
from xraygpt.common.config import load
from xraygpt.experiment import Training, build_runner
imported = time.perf_counter()
runner = build_runner(load(Training, sys.argv[1]))
step, first = runner._step, []
def stepping(batches):
    first.append(time.perf_counter())
    return step(batches)
runner._step = stepping
runner.train()
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
kib = int(next(x for x in lines if x.startswith("Anonymous:")).split()[1])
print(json.dumps({"start": first[0] - imported, "import": imported - began, "MiB": kib / 1024}))
"""
SENTENCES = (
    "The heart is normal in size.",
    "The heart is enlarged.",
    "There is a small right pleural effusion.",
    "The lungs are clear.",
    "There is streaky opacity in the left lower lobe.",
    "No pneumothorax is seen.",
    "Degenerative changes of the spine.",
)


def write(folder: Path, records: int) -> Path:
    """A corpus and the YAML that trains on it."""
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 32, 32), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(records):
            text = " ".join(draw.choices(SENTENCES, k=draw.randint(3, 10)))
            row = {"id": f"r{i}", "study": f"s{i}", "image": f"images/{i % 64}.png"}
            row |= {"findings": text, "split": "val" if i % 100 == 99 else "train"}
            file.write(json.dumps(row) + "\n")
    config = folder / "run.yaml"
    config.write_text(YAML.format(storage=folder), encoding="utf-8")
    return config


def measured(records: int) -> dict[str, float]:
    """Of one training in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        config = write(Path(name), records)
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(config)], capture_output=True, text=True, cwd=ROOT
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 50000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    runs: dict[int, list[dict[str, float]]] = {records: [] for records in given.records}
    for _ in range(given.rounds):
        for records, found in runs.items():
            found.append(measured(records))
    for records, found in runs.items():
        start = sorted(row["start"] for row in found)
        held = sorted(row["MiB"] for row in found)
        print(
            f"{records} records: {statistics.median(start):.1f} s to the first step "
            f"({start[0]:.1f}–{start[-1]:.1f}), {held[0]:.0f}–{held[-1]:.0f} MiB"
        )
    if given.out:
        given.out.write_text(json.dumps(runs, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
