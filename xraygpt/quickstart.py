"""Train and evaluate on SYNTHETIC phantoms: python -m xraygpt.quickstart [nano|mini]."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.cli import run_main
from xraygpt.common.config import load, to_yaml
from xraygpt.common.errors import TrainingError
from xraygpt.common.model_keys import config_value
from xraygpt.common.numbers import decimal

if TYPE_CHECKING:
    from xraygpt.experiment import Experiment

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent.parent
STOPPED_CODES = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit codes after Ctrl-C and SIGTERM
HEADLINES = ("drawn_macro_F1", "drawn_laterality", "ROUGE-L", "distinct")
MINI = ("mini_lm", "mini_stage1", "mini_stage2")
TITLES = {
    "lm": "a small language model learns to write reports",
    "stage1": "the Q-Former learns to read images",
    "stage2": "both learn to write complete reports",
    "mini_lm": "SmolLM2 learns to write these reports",
    "mini_stage1": "the Q-Former learns to work with SmolLM2",
    "mini_stage2": "both learn to write complete reports",
    "evaluate": "evaluation on held-out phantoms, with controls",
}


@dataclass(frozen=True)
class Step:
    """One training or evaluation command of the quickstart."""

    title: str
    script: str
    config: str

    @property
    def command(self) -> list[str]:
        """The command line, with which a training resumes if it was interrupted."""
        resume = ["--options", "run.resume_ckpt_path=auto"] if self.script == "train.py" else []
        path = CONFIGS / self.config
        return [sys.executable, str(CONFIGS / self.script), "--cfg-path", str(path), *resume]

    def load(self) -> Experiment:
        """Load and check the configuration of this step.

        Raises:
            ConfigError: The YAML file has problems.
        """
        # Torch takes seconds to import; help and argument errors do not wait for it.
        from xraygpt.experiment import Evaluation, Training

        kind = Training if self.script == "train.py" else Evaluation
        return load(kind, CONFIGS / self.config)


def steps(preset: str) -> list[Step]:
    """Return the steps of a preset in order; `mini` starts with the first two of `nano`."""
    nano = preset == "nano"
    names = ("lm", "stage1", "stage2") if nano else ("lm", "stage1", *MINI)
    last = "eval_configs/quickstart.yaml" if nano else "eval_configs/quickstart_mini.yaml"
    trainings = [
        Step(TITLES[name], "train.py", f"train_configs/quickstart_{name}.yaml") for name in names
    ]
    return [*trainings, Step(TITLES["evaluate"], "evaluate.py", last)]


def run(preset: str) -> Path:
    """Run every step that is not done yet.

    A step whose configuration has changed since it was started is repeated, and so are all later
    steps; the old output is moved aside.

    Args:
        preset: "nano" or "mini".

    Returns:
        The report page of the evaluation.

    Raises:
        TrainingError: A step failed or was stopped. Finished steps are kept.
    """
    todo = steps(preset)
    seconds, peak, previous = 0.0, 0.0, ""
    for number, step in enumerate(todo, start=1):
        experiment = step.load()
        marker = _marker(experiment)
        state = _load_state(marker, experiment, previous)
        if state.get("result") and Path(state["result"]).exists():
            log.info("step %d of %d, %s: already done", number, len(todo), step.title)
        else:
            log.info("\nstep %d of %d: %s", number, len(todo), step.title)
            state = _run_step(step, number, state, marker)
        previous = f"{state['key']} {state['result']}"
        seconds, peak = seconds + state["seconds"], max(peak, state["peak_gib"])
    page = Path(state["result"])
    _print_summary(page, seconds, peak, todo[-1])
    return page


def _run_step(step: Step, number: int, state: dict[str, Any], marker: Path) -> dict[str, Any]:
    """Run a step and store its new state; its time counts even if it fails."""
    start = time.monotonic()
    code, output = _call(step.command)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    state = state | {
        "seconds": state["seconds"] + time.monotonic() - start,
        "peak_gib": max(state["peak_gib"], peak),
        "result": _result_path(output) if code == 0 else "",
    }
    write_text_atomic(marker, json.dumps(state))
    if code in STOPPED_CODES:
        raise TrainingError(f"stopped in step {number}; repeat the command to continue")
    if code:
        raise TrainingError(
            f"step {number} ({step.script} {step.config}) ended with exit code {code}; fix the "
            "problem above and repeat the command, which continues from there"
        )
    return state


def _result_path(output: str) -> str:
    """Return the last line that is a path: the run folder of train.py, or evaluate.py's page."""
    return next((line for line in reversed(output.splitlines()) if _is_path(line)), "")


def _is_path(line: str) -> bool:
    try:
        return bool(line.strip()) and Path(line).exists()
    except OSError:  # a sentence that is too long for a file name
        return False


def _call(command: list[str]) -> tuple[int, str]:
    """Run a command and return its exit code and output; if stopped, wait until it has saved.

    The terminal also sends Ctrl-C to the command; SIGTERM is forwarded to it.
    """
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.signal(signal.SIGTERM, lambda *_: child.terminate())
            output, _ = child.communicate()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return child.returncode, output


def _marker(experiment: Any) -> Path:
    """Return the state file next to a step's output, e.g. ``output/quickstart/lm.step.json``."""
    output = Path(experiment.run.output_dir)
    return output.with_name(f"{output.name}.step.json")


def _key(experiment: Experiment, previous: str) -> str:
    """Return a hash of everything that determines a step's result, including previous steps."""
    path = config_value(experiment.model, "prompt_path")
    prompts = path.read_text(encoding="utf-8") if path is not None else ""
    parts = [to_yaml(experiment), prompts, previous]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load_state(marker: Path, experiment: Any, previous: str) -> dict[str, Any]:
    """Load the state of this step; move output that was made with other settings aside."""
    key = _key(experiment, previous)
    fresh = {"key": key, "seconds": 0.0, "peak_gib": 0.0, "result": ""}
    try:
        state: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    if state.get("key") == key:
        return fresh | state
    output = Path(experiment.run.output_dir)
    if output.exists():  # not made by this step, whose marker is written first
        moved = output.with_name(f"{output.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        output.rename(moved)
        log.info("%s was made with other settings or by hand; it was moved to %s", output, moved)
    write_text_atomic(marker, json.dumps(fresh))
    return fresh


def _print_summary(page: Path, seconds: float, peak: float, last: Step) -> None:
    result = json.loads((page.parent / "scores.json").read_text(encoding="utf-8"))
    scores = result["scores"]
    conditions = list(dict.fromkeys(row["condition"] for row in scores))
    lines = ["", f"{'':18}" + "".join(f"{c:>13}" for c in conditions)]
    for name in HEADLINES:
        values = {r["condition"]: r["value"] for r in scores if r["name"] == name}
        cells = (f"{decimal(values.get(c, math.nan)):>13}" for c in conditions)
        lines.append(f"{name:18}" + "".join(cells))
    lines += [
        "",
        f"{seconds / 60:.1f} minutes of computing; peak memory of one process: {peak:.1f} GiB.",
        "The phantoms are SYNTHETIC; the scores say nothing about patients. Research use only.",
        "",
        f"The page:         {page.resolve()}",
        f"An image:         .venv/bin/python predict.py --cfg-path {last.config} --input my.png",
        f"In the browser:   make demo DEMO={last.config}",
        "Your own corpus:  docs/data.md",
        "",
        *_verdict_lines(result),
    ]
    sys.stdout.write("\n".join(lines))


def _verdict_lines(result: dict[str, Any]) -> list[str]:
    """Return the verdict and an empty line; nothing for scores of an earlier version."""
    if "verdict" not in result:
        return []
    return [" ".join(result["verdict"]["sentences"]), ""]


def main() -> None:
    """Parse the command line and run the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", choices=("nano", "mini"), default="nano")
    run(parser.parse_args().preset)


if __name__ == "__main__":
    sys.exit(run_main(main))
