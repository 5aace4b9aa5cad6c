"""The writer of instruction sets at true size, on one process and on two, alternately.

python benchmarks/instruction_writer.py [--rounds 3] [--memory]

Reads the tables inside the installed torchxrayvision in place: VinDr-CXR (67,914 boxes on 15,000
images; it has no image sizes, so MADE-UP ones are used), RSNA, NIH boxes, and CheXpert's 223,414
rows. No image is read, and nothing of the tables is kept. --memory compares the peak memory of the
writer for 20,000 and 200,000 items.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).parent.parent


def main() -> None:
    """Run the writer alternately with one and two processes, and print ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        yaml, out, workers = args.run
        run(Path(yaml), Path(out), int(workers))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            compare_memory(Path(folder))
        else:
            compare_speed(Path(folder), args.rounds)


def compare_speed(folder: Path, rounds: int) -> None:
    """Write everything alternately with one and two processes."""
    yaml = write_settings(folder)
    times: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    for _ in range(rounds):
        for workers in times:
            seconds, memory, text = run_side(yaml, folder / "out", workers)
            times[workers].append(seconds)
            digests.add(digest(folder / "out"))
            print(f"{workers} processes: {seconds:.1f} s, {memory:.0f} MiB; {text}", flush=True)
    one, two = (statistics.median(times[workers]) for workers in (1, 2))
    print(f"two processes are {one / two:.2f} times as fast as one")
    print("the files are the same" if len(digests) == 1 else "THE FILES DIFFER")


def compare_memory(folder: Path) -> None:
    """Compare the peak memory for sets of two sizes."""
    peaks = {}
    for items in (20_000, 200_000):
        yaml = write_settings(folder, cap=items)
        _, peaks[items], text = run_side(yaml, folder / "out", 1)
        print(f"{peaks[items]:.0f} MiB; {text}", flush=True)
    print(f"ten times the items take {peaks[200_000] / peaks[20_000]:.2f} times the memory")


def run_side(yaml: Path, out: Path, workers: int) -> tuple[float, float, str]:
    """Run the writer in a process of its own: seconds, peak memory in MiB, and its last line."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--run", yaml, out, workers]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(part) for part in command], check=True, env=env, stdout=subprocess.PIPE, text=True
    )
    seconds, memory, text = result.stdout.strip().splitlines()[-1].split("|")
    return float(seconds), float(memory), text


def run(yaml: Path, out: Path, workers: int) -> None:
    """Write the instruction set, and print seconds, peak memory and the number of items."""
    from xraygpt.common.config import load
    from xraygpt.instructions.settings import InstructionSet
    from xraygpt.jobs.instructions import Writer

    start = time.perf_counter()
    result = Writer(load(InstructionSet, yaml), out, workers).write()
    seconds = time.perf_counter() - start
    peak = max(
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"{seconds}|{peak}|{sum(result.items.values())} items")


def digest(out: Path) -> str:
    """Return the hash of the items and of the LLaVA file."""
    sha = hashlib.sha256()
    for path in sorted([*out.glob("items/*"), *out.glob("llava/*")]):
        with path.open("rb") as file:  # whole files would count as memory of the next process
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def write_settings(folder: Path, cap: int | None = None) -> Path:
    """Write the YAML file; a cap leaves CheXpert alone."""
    tables = table_folder()
    vindr = folder / "VinDr-CXR"
    vindr.mkdir(exist_ok=True)
    link = vindr / "annotations_train.csv.gz"
    if not link.is_symlink():
        link.symlink_to(tables / "vinbigdata-train.csv.gz")
        write_sizes(link, vindr / "sizes.csv")
    mixture = [
        "{collection: vindr, task: abnormality_grounding, repeats: 3}",
        "{collection: vindr, task: detection, repeats: 2}",
        "{collection: rsna, task: abnormality_grounding, negatives: 1}",
        "{collection: nih, task: abnormality_grounding}",
        "{collection: chexpert, task: classification}",
    ]
    if cap is not None:
        mixture = [f"{{collection: chexpert, task: classification, repeats: 2, cap: {cap // 2}}}"]
    path = folder / "set.yaml"
    path.write_text(
        f"""
collections:
  vindr: {{collection: vindr_cxr, root: {vindr}, sizes: {vindr / "sizes.csv"}}}
  rsna:
    collection: rsna
    labels: {tables / "kaggle_stage_2_train_labels.csv.zip"}
    headers: {tables / "kaggle_stage_2_train_images_dicom_headers.csv.gz"}
  nih:
    collection: nih_boxes
    boxes: {tables / "BBox_List_2017.csv.gz"}
    entries: {tables / "Data_Entry_2017_v2020.csv.gz"}
  chexpert: {{collection: chexpert, table: {tables / "chexpert_train.csv.gz"}}}
mixture:
"""
        + "".join(f"  - {line}\n" for line in mixture)
        + "output: {images: unchecked, formats: [llava]}\n"
    )
    return path


def write_sizes(table: Path, out: Path) -> None:
    """Write MADE-UP sizes in which all boxes of VinDr-CXR fit."""
    sys.path.insert(0, str(REPO))
    from xraygpt.instructions.tables import Tables

    with Tables(":memory:") as tables:
        tables.load_csv("boxes", table, ("image_id",))
        ids = [i for (i,) in tables.rows("SELECT DISTINCT image_id FROM boxes")]
    out.write_text("image_id,width,height\n" + "".join(f"{i},4000,4000\n" for i in ids))


def table_folder() -> Path:
    """Return the folder of tables inside torchxrayvision, which is not imported."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.origin is None:
        sys.exit("torchxrayvision is not installed")
    return Path(spec.origin).parent / "data"


if __name__ == "__main__":
    main()
