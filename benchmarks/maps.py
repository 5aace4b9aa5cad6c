"""Accuracy of attention maps on phantoms with one lesion, whose pixels are known.

    python benchmarks/maps.py --cfg-path eval_configs/quickstart.yaml

The map belongs to the sentence of the model's report that names the lesion. The figure is the
fraction of the map inside the lesion, divided by the lesion's fraction of the picture area; a map
without information has 1. There are two controls for the same lesion: the map of a randomly chosen
other study, and the map of a sentence of the same report that does not name the lesion. The
phantoms are SYNTHETIC, with a seed that no corpus here uses.
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
from xraygpt.processors.text import sentence_spans

SIDE, SEED = 256, 20_26


@dataclass(frozen=True)
class Case:
    """A lesion that the report names, and attention maps without and with the average subtracted.

    `maps` are those of the sentence that names it, `other_maps` those of a sentence that does not;
    the latter are empty if there is no such sentence.
    """

    finding: str
    lesion: np.ndarray  # (SIDE, SIDE) bool
    maps: list[np.ndarray]
    other_maps: list[np.ndarray]


def build_case(
    number: int, finding: Any, parts: ChatParts, mappers: tuple[AttentionMapper, AttentionMapper]
) -> Case | None:
    """Draw a study, report on it and compute maps; None if the report does not name the lesion."""
    picture = render(Study(f"MAP-{number:05d}", (finding,), seed=SEED), "frontal", SIDE)
    lesion = picture.masks[0] > 0.5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.png"
        save_picture(picture.pixels, path)
        image = parts.read_media(path)
    conversation = parts.engine.start()
    conversation.add_image(image)
    text = conversation.ask(parts.engine.renderer.prompts[0], parts.generation).text()
    spans = [
        (start, end, finding.name in findings_in_text(text[start:end]))
        for start, end in sentence_spans(text)
    ]

    def maps(span: tuple[int, int, bool]) -> list[np.ndarray]:
        heats = [mapper.maps(conversation, *span[:2])[0].heat for mapper in mappers]
        return [heat_to_image(heat, parts.fit, SIDE, SIDE) for heat in heats]

    naming = [span for span in spans if span[2]]
    others = [span for span in spans if not span[2]]
    if not naming or not lesion.any():
        return None
    other = Random(number).choice(others) if others else None
    return Case(finding.name, lesion, maps(naming[0]), maps(other) if other else [])


def concentration(map_: np.ndarray, lesion: np.ndarray) -> float:
    """Fraction of the map inside the lesion, divided by the lesion's fraction of the area."""
    inside = map_[lesion].sum() / max(float(map_.sum()), 1e-12)
    return float(inside / lesion.mean())


def interval(values: np.ndarray) -> str:
    """Mean with its 95 % percentile interval from 2,000 bootstrap samples."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def print_results(name: str, cases: list[Case], which: int) -> None:
    """Print the means of one kind of map (index `which`), over all findings and by finding."""
    own = np.array([concentration(case.maps[which], case.lesion) for case in cases])
    random_maps = []
    rng = Random(0)
    for case in cases:
        other = rng.choice([c for c in cases if c is not case])
        random_maps.append(concentration(other.maps[which], case.lesion))
    control = np.array(random_maps)
    print(f"{name}: n = {len(cases)}, own {interval(own)}, median {np.median(own):.2f}; "
          f"map of another study {interval(control)}; difference {interval(own - control)}; "
          f"own is larger in {(own > control).mean():.0%}")  # fmt: skip
    with_other = [case for case in cases if case.other_maps]
    naming = np.array([concentration(case.maps[which], case.lesion) for case in with_other])
    other_sentence = np.array(
        [concentration(case.other_maps[which], case.lesion) for case in with_other]
    )
    print(
        f"   map of another sentence of the same report (n = {len(with_other)}) "
        f"{interval(other_sentence)}; difference {interval(naming - other_sentence)}; "
        f"own is larger in {(naming > other_sentence).mean():.0%}"
    )
    by_finding: dict[str, list[float]] = defaultdict(list)
    for case, value in zip(cases, own, strict=True):
        by_finding[case.finding].append(value)
    print(
        "   " + ", ".join(f"{k} {np.mean(v):.1f} ({len(v)})" for k, v in sorted(by_finding.items()))
    )


def main() -> None:
    """Draw phantoms, report on them, compute maps and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg-path", required=True)
    parser.add_argument("--options", nargs="*", default=[])
    parser.add_argument("--studies", type=int, default=440)
    args = parser.parse_args()
    experiment = load(Evaluation, args.cfg_path, args.options)
    parts = build_chat(experiment, "auto")
    plain, relative = AttentionMapper(parts.engine), AttentionMapper(parts.engine)
    relative.set_baseline(reference_images(experiment, parts.engine.model.image_spec, 64))
    rng = Random(SEED)
    findings = [sample_finding(list(KINDS)[i % len(KINDS)], rng) for i in range(args.studies)]
    numbered = progress(enumerate(findings), "maps", len(findings), unit="study")
    results = [build_case(i, finding, parts, (plain, relative)) for i, finding in numbered]
    cases = [case for case in results if case is not None]
    print(f"{len(cases)} of {len(findings)} lesions are named in the report of their study")
    print_results("attention", cases, 0)
    count = relative.num_references
    print_results(f"with the average of {count} training images subtracted", cases, 1)


if __name__ == "__main__":
    sys.exit(run_main(main))
