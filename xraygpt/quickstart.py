"""The whole way in one command, on SYNTHETIC phantoms: python -m xraygpt.quickstart [nano|mini]."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xraygpt.common.checkpoint import write_file
from xraygpt.common.cli import guarded
from xraygpt.common.config import load, to_yaml
from xraygpt.common.errors import TrainingError

if TYPE_CHECKING:
    from xraygpt.experiment import Experiment

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent.parent
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit codes after Ctrl-C and SIGTERM
HEADLINES = ("drawn_macro_F1", "drawn_laterality", "ROUGE-L", "distinct")


MINI = ("mini_lm", "mini_stage1", "mini_stage2")
TITLES = {
    "lm": "a small language model learns to write reports",
    "stage1": "the Q-Former learns to read images",
    "stage2": "both learn to write whole reports",
    "mini_lm": "SmolLM2 learns to write these reports",
    "mini_stage1": "the Q-Former learns to speak to SmolLM2",
    "mini_stage2": "both learn to write whole reports",
    "evaluate": "held-out phantoms, beside the controls",
}


@dataclass(frozen=True)
class Step:
    """One command of the tour."""

    title: str
    script: str
    config: str

    @property
    def command(self) -> list[str]:
        """What runs it; a training goes on where it was."""
        resume = ["--options", "run.resume_ckpt_path=auto"] if self.script == "train.py" else []
        path = CONFIGS / self.config
        return [sys.executable, str(CONFIGS / self.script), "--cfg-path", str(path), *resume]

    def load(self) -> Experiment:
        """What it would run.

        Raises:
            ConfigError: Its YAML is wrong.
        """
        # Torch takes seconds: help and typing errors do not wait for it.
        from xraygpt.experiment import Evaluation, Training

        kind = Training if self.script == "train.py" else Evaluation
        return load(kind, CONFIGS / self.config)


def steps(preset: str) -> list[Step]:
    """The commands of a preset, in order; `mini` begins with the first two of `nano`."""
    nano = preset == "nano"
    trained = ("lm", "stage1", "stage2") if nano else ("lm", "stage1", *MINI)
    last = "eval_configs/quickstart.yaml" if nano else "eval_configs/quickstart_mini.yaml"
    trainings = [
        Step(TITLES[name], "train.py", f"train_configs/quickstart_{name}.yaml") for name in trained
    ]
    return [*trainings, Step(TITLES["evaluate"], "evaluate.py", last)]


def run(preset: str) -> Path:
    """Every step that is not done yet; returns the page.

    A step whose configuration changed since it was begun starts anew, and so do those after it;
    what it had made is moved aside.

    Raises:
        TrainingError: A step failed or was stopped; the message says which. What was done stays.
    """
    tour = steps(preset)
    seconds, peak, before = 0.0, 0.0, ""
    for number, step in enumerate(tour, start=1):
        experiment = step.load()
        marker = _marker(experiment)
        noted = _noted(marker, experiment, before)
        if noted.get("result") and Path(noted["result"]).exists():
            log.info("step %d of %d, %s: done before", number, len(tour), step.title)
        else:
            log.info("\nstep %d of %d: %s", number, len(tour), step.title)
            noted = _do(step, number, noted, marker)
        before = f"{noted['key']} {noted['result']}"
        seconds, peak = seconds + noted["seconds"], max(peak, noted["peak_gib"])
    page = Path(noted["result"])
    _say_what_came_of_it(page, seconds, peak, tour[-1])
    return page


def _do(step: Step, number: int, noted: dict[str, Any], marker: Path) -> dict[str, Any]:
    """Run a step; its time counts even if it does not come to its end."""
    start = time.monotonic()
    code, said = _call(step.command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    noted = noted | {
        "seconds": noted["seconds"] + time.monotonic() - start,
        "peak_gib": max(noted["peak_gib"], used),
        "result": said.strip().splitlines()[-1] if code == 0 else "",
    }
    write_file(marker, json.dumps(noted))
    if code in STOPPED:
        raise TrainingError(f"stopped in step {number}; type the same command again to go on")
    if code:
        raise TrainingError(
            f"step {number} ({step.script} {step.config}) ended with {code}; mend what it says "
            "above and type the same command again: it goes on from there"
        )
    return noted


def _call(command: list[str]) -> tuple[int, str]:
    """Exit code and output of a command that saves before it ends, so it is always waited for.

    Ctrl-C reaches it by itself, SIGTERM is handed on.
    """
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.signal(signal.SIGTERM, lambda *_: child.terminate())
            said, _ = child.communicate()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return child.returncode, said


def _marker(experiment: Any) -> Path:
    """Lies beside the step's output: ``output/quickstart/lm.step.json``."""
    output = Path(experiment.run.output_dir)
    return output.with_name(f"{output.name}.step.json")


def _key(experiment: Experiment, before: str) -> str:
    """Changes with whatever decides a step's result: settings, presets, questions, steps before."""
    asked = getattr(experiment.model, "prompt_path", None)
    questions = asked.read_text(encoding="utf-8") if asked is not None else ""
    parts = [to_yaml(experiment), questions, before]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _noted(marker: Path, experiment: Any, before: str) -> dict[str, Any]:
    """What earlier calls noted of this very step; what other settings made is moved aside."""
    key = _key(experiment, before)
    fresh = {"key": key, "seconds": 0.0, "peak_gib": 0.0, "result": ""}
    try:
        noted: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = {}
    if noted.get("key") == key:
        return fresh | noted
    output = Path(experiment.run.output_dir)
    if output.exists():  # a step of this tour has its marker before it makes any
        aside = output.with_name(f"{output.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        output.rename(aside)
        log.info("%s was made with other settings or by hand: it is now %s", output, aside)
    write_file(marker, json.dumps(fresh))
    return fresh


def _say_what_came_of_it(page: Path, seconds: float, peak: float, last: Step) -> None:
    scores = json.loads((page.parent / "scores.json").read_text(encoding="utf-8"))["scores"]
    conditions = list(dict.fromkeys(row["condition"] for row in scores))
    out = ["", f"{'':18}" + "".join(f"{c:>13}" for c in conditions)]
    for name in HEADLINES:
        by = {r["condition"]: r["value"] for r in scores if r["name"] == name}
        out.append(f"{name:18}" + "".join(f"{by.get(c, float('nan')):13.3f}" for c in conditions))
    out += [
        "",
        f"{seconds / 60:.1f} minutes of computing, at most {peak:.1f} GiB in one process.",
        "The phantoms are SYNTHETIC, the figures no claim about patients. Research use only.",
        "",
        f"The page:         {page.resolve()}",
        f"An image:         .venv/bin/python predict.py --cfg-path {last.config} --input my.png",
        *(["In the browser:   make demo"] if last.config == "eval_configs/quickstart.yaml" else []),
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
