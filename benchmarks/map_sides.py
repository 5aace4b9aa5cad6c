"""Do attention maps fall on the right side? Measured on films with human coding.

    python benchmarks/map_sides.py --cfg-path eval_configs/xraygpt_mini.yaml

For each film of the evaluated split with a finding that is coded on one side only, the model reads
the film and the reference report, and the map belongs to the sentence that names the finding on
that side. The figure is the share of the map in the coded half of the film; a map without
information scores 0.5. The control is the map of another film for the same coded half.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from xraygpt.common.cli import run_main
from xraygpt.common.config import load
from xraygpt.common.logging import progress
from xraygpt.conversation.attention import AttentionMapper
from xraygpt.datasets.base import StudyDataset, reference_text
from xraygpt.demo.maps import MIN_SHARE
from xraygpt.experiment import ChatParts, Evaluation, build_chat, reference_images
from xraygpt.vocabulary.chest_labeller import mentions
from xraygpt.vocabulary.chest_mesh import findings_of
from xraygpt.vocabulary.questions import coded_sides


@dataclass(frozen=True)
class Case:
    """A finding coded on one side, the left half's share of its map, and the map's share."""

    finding: str
    side: str
    left_share: float  # the film's left half, which is the patient's right
    images_share: float

    def score(self, left_share: float) -> float:
        """Return the share of a map in the coded half."""
        return left_share if self.side == "right" else 1 - left_share


def sided_spans(text: str, codes: list[str]) -> list[tuple[str, str, int, int]]:
    """Return finding, side, start and end of sentences that name a finding on its coded side."""
    sides: dict[str, set[str]] = {}
    for code in codes:
        for side in coded_sides([code]).values():
            for finding in findings_of([code]):
                sides.setdefault(finding, set()).add(side)
    spans = []
    for mention in mentions(text):
        if mention.status == "positive" and sides.get(mention.finding) == {mention.laterality}:
            start = text.lower().find(mention.sentence.lower())
            if start >= 0:
                span = (start, start + len(mention.sentence))
                spans.append((mention.finding, str(mention.laterality), *span))
    return list({span[0]: span for span in spans}.values())


def measure(data: StudyDataset, parts: ChatParts, mapper: AttentionMapper) -> list[Case]:
    """Compute the maps of all cases."""
    cases = []
    for i in progress(range(len(data)), "maps", unit="film"):
        text = reference_text(data.get_turns(i))
        spans = sided_spans(text, list(data.records[i].meta.get("codes") or ()))
        sample = data[i] if spans else None
        if sample is None:
            continue
        conversation = parts.engine.start()
        conversation.add_image(sample["media"][0])
        conversation.restore("", text)
        for finding, side, start, end in spans:
            result = mapper.maps(conversation, start, end)[0]
            heat = result.heat.numpy()
            half = heat.shape[1] // 2
            left, right = heat[:, :half].sum(), heat[:, -half:].sum()
            if left + right > 0:
                share = float(left / (left + right))
                cases.append(Case(finding, side, share, result.images_share))
    return cases


def interval(values: np.ndarray) -> str:
    """Format the mean with its 95 % percentile interval from 2,000 bootstrap samples."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Compute the maps and print their shares in the coded half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg-path", type=Path, required=True)
    parser.add_argument("--references", type=int, default=64, help="films in the average map")
    args = parser.parse_args()
    experiment = load(Evaluation, args.cfg_path, [])
    parts = build_chat(experiment, "cpu")
    spec = parts.engine.model.image_spec
    builder = next(iter(experiment.datasets.values())).build(image_spec=spec)
    data = builder.build(experiment.run.split, "eval")
    mapper = AttentionMapper(parts.engine)
    mapper.set_baseline(reference_images(experiment, spec, args.references))
    cases = measure(data, parts, mapper)
    rng = Random(0)
    own = np.array([case.score(case.left_share) for case in cases])
    other = np.array(
        [case.score(rng.choice([c for c in cases if c is not case]).left_share) for case in cases]
    )
    shares = np.array([case.images_share for case in cases])
    print(f"n = {len(cases)} findings; share of the map in the coded half {interval(own)}; "
          f"map of another film {interval(other)}; difference {interval(own - other)}; "
          f"more than half of the map on the coded side in {(own > 0.5).mean():.0%}")  # fmt: skip
    print(f"attention to images: median {np.median(shares):.1%}; below {MIN_SHARE:.0%} "
          f"(no map is shown): {(shares < MIN_SHARE).mean():.0%}")  # fmt: skip
    shown = shares >= MIN_SHARE
    if shown.sum() > 1:
        print(f"shown maps only (n = {shown.sum()}): {interval(own[shown])}; "
              f"difference {interval((own - other)[shown])}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_main(main))
