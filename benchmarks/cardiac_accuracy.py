"""Agreement of a segmenter with masks drawn by people: Dice coefficients and ejection fractions.

python benchmarks/cardiac_accuracy.py FOLDER --cfg-path eval_configs/cardiac_mr.yaml

FOLDER has studies with masks, such as the HDF5 files of ACDC or the PNG files of Sunnybrook
(`--masks Labels`). Intervals are 95 % bootstrap intervals over patients.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np

from xraygpt.cardiac.function import Conventions, apply_conventions, measure_function
from xraygpt.cardiac.intake import read_study
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import StackLabels, segment_stack
from xraygpt.cardiac.study_list import list_studies
from xraygpt.common.errors import InputError
from xraygpt.requirements_check import load_analysis
from xraygpt.segmentation.labels import LV, MYOCARDIUM, RV

STRUCTURES = {"LV": LV, "myocardium": MYOCARDIUM, "RV": RV}


def main() -> None:
    """Print the agreement for each study, and the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cfg-path", type=Path, default=Path("eval_configs/cardiac_mr.yaml"))
    parser.add_argument("--masks", default="", help="name of the folder with masks, if apart")
    parser.add_argument("--convention", default="")
    parser.add_argument(
        "--group", type=int, default=0, help="letters of the name that tell a group"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    segmenter = load_analysis(args.cfg_path, []).run.segmenter.build()
    results = Results()
    for study in list_studies(args.folder):
        masks = args.folder.parent / args.masks / study.name if args.masks else None
        try:
            stack = read_study(study, masks, args.convention).stacks[0]
            found = segment_stack(stack, segmenter, stack.labelled_phases)
        except InputError as error:
            print(f"{study.name}: {error}")
            continue
        print(study.name, results.add(stack, found, study.name[: args.group]), flush=True)
    results.show()


class Results:
    """Dice coefficients and errors of ejection fractions, over all studies."""

    def __init__(self) -> None:
        self.dice: dict[str, list[float]] = defaultdict(list)
        self.errors: dict[str, list[float]] = defaultdict(list)
        self.slices: list[float] = []

    def add(self, stack: Stack, found: StackLabels, group: str) -> str:
        """Compare a study with its masks, and return a line about it."""
        truth = np.stack([stack.labels(phase) for phase in stack.labelled_phases])
        parts = []
        for name, value in STRUCTURES.items():
            if (truth == value).any():
                self.dice[name].append(overlap(found.labels, truth, value))
                parts.append(f"{name} {self.dice[name][-1]:.3f}")
        for t, s in np.argwhere((truth == LV).any(axis=(2, 3))):
            self.slices.append(overlap(found.labels[t, s], truth[t, s], LV))
        for side in ("left", "right"):
            ours, true = (fraction(stack, labels, side) for labels in (found, given(found, truth)))
            if ours is not None and true is not None:
                self.errors[side].append(ours - true)
                parts.append(f"{side} EF {ours:.1f} (masks {true:.1f})")
                if group and side == "left":
                    self.errors[group].append(ours - true)
        return ", ".join(parts)

    def show(self) -> None:
        """Print the means."""
        for name, scores in self.dice.items():
            print(f"Dice {name}: {with_interval(scores)} over {len(scores)} patients")
        mean, median = np.mean(self.slices), np.median(self.slices)
        print(f"Dice LV by slice: mean {mean:.3f}, median {median:.3f}, n {len(self.slices)}")
        for name, differences in self.errors.items():
            print(
                f"EF {name}: mean absolute error {with_interval(np.abs(differences))}, bias "
                f"{np.mean(differences):+.1f}, n {len(differences)}"
            )


def overlap(a: np.ndarray, b: np.ndarray, value: int) -> float:
    """Return the Dice coefficient of one structure."""
    sizes = (a == value).sum() + (b == value).sum()
    return float(2 * ((a == value) & (b == value)).sum() / sizes)


def given(found: StackLabels, truth: np.ndarray) -> StackLabels:
    """Return the masks in the form of a segmentation."""
    return StackLabels(found.phases, truth, found.confidence, False)


def fraction(stack: Stack, labels: StackLabels, side: str) -> float | None:
    """Return the ejection fraction of a side; None if it cannot be measured."""
    try:
        function = measure_function(stack, apply_conventions(stack, labels, Conventions()))
        ventricle = getattr(function, side)
        return None if ventricle is None else float(ventricle.ejection_fraction)
    except InputError:
        return None


def with_interval(values: list[float] | np.ndarray) -> str:
    """Return the mean with its 95 % bootstrap interval."""
    array, rng = np.asarray(values), np.random.default_rng(0)
    means = rng.choice(array, (2000, len(array))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{array.mean():.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
