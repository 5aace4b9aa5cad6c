"""Memory and time to load tables of studies with embeddings, and to find near copies of reports.

    python benchmarks/study_table_memory.py [--studies 10000 1000000] [--layouts jsonl csv parquet]

Tables with SYNTHETIC reports of about 300 words, and one file with embeddings of width 8, are
written to a temporary folder. Each table is loaded in a separate process. Printed are the seconds
on the clock and of one CPU core, and the growth of the resident memory: its peak while loading, and
its anonymous part (not backed by a file) afterwards. With --near, the table is also loaded with
`near_duplicates`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[1]
NOUNS = (
    "ventricle",
    "atrium",
    "valve",
    "septum",
    "root",
    "wall",
    "arch",
    "leaflet",
    "apex",
    "vein",
)
STATES = ("normal", "small", "large", "thick", "thin", "calcified", "mobile", "bright", "smooth")
LOAD = """
import gc, json, sys, time
from pathlib import Path
from xraygpt.datasets.studies import StudiesBuilder
from xraygpt.datasets.study_splits import StudySplitRule
from xraygpt.experiment import NO_IMAGES
def kib(name, file="/proc/self/status"):
    lines = Path(file).read_text().splitlines()
    return int(next(s for s in lines if s.startswith(name)).split()[1])
storage, table, near = sys.argv[1:]
fields = {"field": None, "near_duplicates": float(near)} if near != "0" else {"field": "split"}
settings = {"storage": Path(storage), "embeddings": "embeddings.safetensors"}
warm = StudiesBuilder.Config(annotations=Path("warm.jsonl"), **settings)
warm.build(image_spec=NO_IMAGES).build("train")
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before, anonymous = kib("VmRSS:"), kib("RssAnon:")
config = StudiesBuilder.Config(annotations=Path(table), split=StudySplitRule(**fields), **settings)
builder = config.build(image_spec=NO_IMAGES)
start, cpu = time.perf_counter(), time.process_time()
by_split, problems = builder.records_by_split()
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps({
    "studies": sum(map(len, by_split.values())), "problems": len(problems),
    "seconds": round(seconds, 1), "CPU seconds": round(cpu, 1),
    "peak growth MB": round((kib("VmHWM:") - before) / 1024, 1),
    "anonymous growth MB": round((kib("RssAnon:") - anonymous) / 1024, 1),
}))
"""


def reports(count: int, words: int = 300) -> Iterator[str]:
    """Yield SYNTHETIC reports; every 50th is a copy of an earlier one with other numbers."""
    rng = random.Random(1)
    kept: list[str] = []
    for i in range(count):
        if i % 50 == 49:
            yield rng.choice(kept).replace("17", "18")
            continue
        sentences = [
            f"The {rng.choice(NOUNS)} of case {rng.randrange(400)} is {rng.choice(STATES)} and "
            f"measures {rng.randrange(90)} mm."
            for _ in range(words // 11)
        ]
        report = " ".join(sentences)
        if len(kept) < 100:
            kept.append(report)
        yield report


def rows(count: int) -> Iterator[dict[str, str | int]]:
    """Yield rows of a table: 98 % train, the rest val and test."""
    for i, report in enumerate(reports(count)):
        split = {98: "val", 99: "test"}.get(i % 100, "train")
        yield {"study": f"study{i}", "split": split, "row": i, "view": "A4C", "report": report}


def write_table(path: Path, count: int) -> None:
    """Write a JSONL, CSV or Parquet table."""
    if path.suffix == ".parquet":
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        writer, batch = None, []
        for row in rows(count):
            batch.append(row)
            if len(batch) == 10_000 or row["row"] == count - 1:
                table = arrow.Table.from_pylist(batch)
                writer = writer or parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
                batch = []
        assert writer is not None
        writer.close()
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, ["study", "split", "row", "view", "report"])
            table.writeheader()
            table.writerows(rows(count))
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))


def main() -> None:
    """Write the tables, load each in a process of its own and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--layouts", nargs="+", default=["jsonl"])
    parser.add_argument("--near", type=float, default=0, help="threshold of near copies, e.g. 0.9")
    args = parser.parse_args()
    for count in args.studies:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_file({"e": np.ones((count, 8), np.float32)}, folder / "embeddings.safetensors")
            write_table(folder / "warm.jsonl", 100)
            for layout in args.layouts:
                write_table(folder / f"table.{layout}", count)
                for near in sorted({0.0, args.near}):
                    command = [sys.executable, "-c", LOAD, name, f"table.{layout}", f"{near:g}"]
                    result = subprocess.run(
                        command, capture_output=True, text=True, check=True, cwd=ROOT
                    )
                    print(f"{layout}, near {near:g}: {result.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
