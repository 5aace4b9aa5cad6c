"""Memory and start-up time of training on a small and on a large corpus.

    python benchmarks/scale.py [--records 1000 50000] [--rounds 5]

Each corpus is generated: reports made of a few sentences, and 64 images that all records share. A
`tiny` model is trained for some steps in a separate process. Printed are the time before the first
step and the anonymous memory (not backed by a file) after the last step: median, minimum and
maximum over the rounds, in which the sizes take turns.
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
start = time.perf_counter()
from pathlib import Path
from xraygpt.common.config import load
from xraygpt.experiment import Training, build_runner
imported = time.perf_counter()
runner = build_runner(load(Training, sys.argv[1]))
step, step_times = runner._step, []
def timed_step(batches):
    step_times.append(time.perf_counter())
    return step(batches)
runner._step = timed_step
runner.train()
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
kib = int(next(s for s in lines if s.startswith("Anonymous:")).split()[1])
seconds = {"start": step_times[0] - imported, "import": imported - start}
print(json.dumps({**seconds, "MiB": kib / 1024}))
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


def write_corpus(folder: Path, records: int) -> Path:
    """Write a corpus and a YAML that trains on it; returns the YAML."""
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 32, 32), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
    rng = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(records):
            text = " ".join(rng.choices(SENTENCES, k=rng.randint(3, 10)))
            row = {"id": f"r{i}", "study": f"s{i}", "image": f"images/{i % 64}.png"}
            row |= {"findings": text, "split": "val" if i % 100 == 99 else "train"}
            file.write(json.dumps(row) + "\n")
    config = folder / "run.yaml"
    config.write_text(YAML.format(storage=folder), encoding="utf-8")
    return config


def measure(records: int) -> dict[str, float]:
    """Times in seconds and memory of one training in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_corpus(Path(folder), records)
        result = subprocess.run(
            [sys.executable, "-c", RUN, str(config)], capture_output=True, text=True, cwd=ROOT
        )
        if result.returncode:
            raise SystemExit(result.stderr)
        values: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
        return values


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 50000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    runs: dict[int, list[dict[str, float]]] = {records: [] for records in args.records}
    for _ in range(args.rounds):
        for records, rows in runs.items():
            rows.append(measure(records))
    for records, rows in runs.items():
        start = sorted(row["start"] for row in rows)
        mib = sorted(row["MiB"] for row in rows)
        print(
            f"{records} records: {statistics.median(start):.1f} s to the first step "
            f"({start[0]:.1f}–{start[-1]:.1f}), {mib[0]:.0f}–{mib[-1]:.0f} MiB"
        )
    if args.out:
        args.out.write_text(json.dumps(runs, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
