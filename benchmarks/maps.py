"""Whether maps tell the truth: phantoms with one lesion, whose pixels are known.

    python benchmarks/maps.py --cfg-path eval_configs/quickstart.yaml

For the sentence of the model's own report that names the lesion: the share of the map's mass inside
the lesion, over the lesion's share of the picture. 1 is a map that knows nothing. Two controls, on
the same lesion: the map of another study, drawn by chance, and that of a sentence of the same
report that does not name the lesion. Phantoms are SYNTHETIC, of a seed that no corpus here has.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from xraygpt.common.cli import run_main
from xraygpt.common.config import load
from xraygpt.common.logging import progress
from xraygpt.conversation.attention import AttentionMapper, heat_to_image
from xraygpt.experiment import ChatParts, Evaluation, build_chat, reference_images
from xraygpt.metrics.phantom_reports import findings_in_text
from xraygpt.phantom.corpus import save_picture
from xraygpt.phantom.design import sample_finding
from xraygpt.phantom.findings import KINDS
from xraygpt.phantom.render import Study, render
from xraygpt.processors.text import split_sentences

SIDE, SEED = 256, 20_26


@dataclass(frozen=True)
class Case:
    """A lesion that the report names; maps of its sentence, plain and less the average.

    `others` are the same of a sentence that does not name it; empty if there is none.
    """

    finding: str
    lesion: np.ndarray  # (SIDE, SIDE) bool
    maps: list[np.ndarray]
    others: list[np.ndarray]


def case_of(
    number: int, finding: Any, parts: ChatParts, looks: tuple[AttentionMapper, AttentionMapper]
) -> Any:
    """A study's case; None if the report does not name its lesion."""
    picture = render(Study(f"MAP-{number:05d}", (finding,), seed=SEED), "frontal", SIDE)
    lesion = picture.masks[0] > 0.5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.png"
        save_picture(picture.pixels, path)
        image = parts.read_media(path)
    conversation = parts.engine.start()
    conversation.add_image(image)
    text = conversation.ask(parts.engine.renderer.prompts[0], parts.generation).text()
    spans, place = [], 0
    for sentence in split_sentences(text):
        start = text.index(sentence, place)
        place = start + len(sentence)
        spans.append((start, place, finding.name in findings_in_text(sentence)))

    def maps(span: tuple[int, int, bool]) -> list[np.ndarray]:
        heats = [look.maps(conversation, *span[:2])[0].heat for look in looks]
        return [heat_to_image(heat, parts.fit, SIDE, SIDE) for heat in heats]

    naming = [span for span in spans if span[2]]
    rest = [span for span in spans if not span[2]]
    if not naming or not lesion.any():
        return None
    other = Random(number).choice(rest) if rest else None
    return Case(finding.name, lesion, maps(naming[0]), maps(other) if other else [])


def ratio(map_: np.ndarray, lesion: np.ndarray) -> float:
    """Share of the map inside, over the lesion's share of the picture."""
    inside = map_[lesion].sum() / max(float(map_.sum()), 1e-12)
    return float(inside / lesion.mean())


def interval(values: np.ndarray) -> str:
    """Mean and its 95 % percentile interval, 2,000 draws."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def tell(name: str, cases: list[Case], which: int) -> None:
    """One line on all findings, one on each."""
    own = np.array([ratio(case.maps[which], case.lesion) for case in cases])
    others = []
    rng = Random(0)
    for case in cases:
        other = rng.choice([c for c in cases if c is not case])
        others.append(ratio(other.maps[which], case.lesion))
    control = np.array(others)
    print(f"{name}: n = {len(cases)}, own {interval(own)}, median {np.median(own):.2f}; "
          f"map of another study {interval(control)}; difference {interval(own - control)}; "
          f"own is larger in {(own > control).mean():.0%}")  # fmt: skip
    beside = [case for case in cases if case.others]
    here = np.array([ratio(case.maps[which], case.lesion) for case in beside])
    there = np.array([ratio(case.others[which], case.lesion) for case in beside])
    larger = f"own is larger in {(here > there).mean():.0%}"
    print(f"   map of another sentence of the same report (n = {len(beside)}) {interval(there)}; "
          f"difference {interval(here - there)}; {larger}")  # fmt: skip
    by: dict[str, list[float]] = defaultdict(list)
    for case, value in zip(cases, own, strict=True):
        by[case.finding].append(value)
    print("   " + ", ".join(f"{k} {np.mean(v):.1f} ({len(v)})" for k, v in sorted(by.items())))


def main() -> None:
    """Draw, ask, look, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg-path", required=True)
    parser.add_argument("--options", nargs="*", default=[])
    parser.add_argument("--studies", type=int, default=440)
    args = parser.parse_args()
    experiment = load(Evaluation, args.cfg_path, args.options)
    parts = build_chat(experiment, "auto")
    plain, less = AttentionMapper(parts.engine), AttentionMapper(parts.engine)
    less.set_baseline(reference_images(experiment, parts.engine.model.image_spec, 64))
    rng = Random(SEED)
    findings = [sample_finding(list(KINDS)[i % len(KINDS)], rng) for i in range(args.studies)]
    drawn = progress(enumerate(findings), "maps", len(findings), unit="study")
    found = [case_of(i, finding, parts, (plain, less)) for i, finding in drawn]
    cases = [case for case in found if case is not None]
    print(f"{len(cases)} of {len(findings)} lesions are named in the report of their study")
    tell("attention", cases, 0)
    tell(f"less the average of {less.num_references} training images", cases, 1)


if __name__ == "__main__":
    sys.exit(run_main(main))
