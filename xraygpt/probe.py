"""What stands in an encoder's features: python -m xraygpt.probe --cfg-path eval_configs/x.yaml.

A linear probe: logistic regression on frozen features (mean and greatest over patches), one for
each finding, fitted on the training split and measured on val: AUROC with its 95 % interval over
studies. Several encoders are compared with the first, in pairs:

    … --vit-model efficientnet_lite0@256 run/output/encoder run/output/encoder+base
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xraygpt.common import distributed
from xraygpt.common.config import load
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.logging import progress
from xraygpt.common.paths import cache_root
from xraygpt.datasets.base import StudyDataset, reference_of
from xraygpt.metrics.findings import FINDINGS, label
from xraygpt.metrics.mesh import findings_of, is_coded
from xraygpt.metrics.probabilities import probability_scores
from xraygpt.metrics.statistics import Score, weighted_sum
from xraygpt.models.encoders import build_vision
from xraygpt.models.vision import VisionEncoder, pooled
from xraygpt.processors.image import ImageSpec

log = logging.getLogger(__name__)

BATCH = 32


@dataclass(frozen=True)
class Split:
    """Features and truth of one split."""

    features: np.ndarray  # (n, 2 D)
    truth: np.ndarray  # (n, F), 1 there, 0 not
    studies: list[str]


def probe(
    train: Split, val: Split, *, strength: float = 1e-3, min_positives: int = 8
) -> list[Score]:
    """AUROC of each finding with enough positives in both splits, and their mean.

    Args:
        train: Fitted on.
        val: Measured on.
        strength: C of scikit-learn's logistic regression, on features of unit variance.
        min_positives: A finding needs so many on val.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.features)
    known, asked = scaler.transform(train.features), scaler.transform(val.features)
    kept = [
        i
        for i in range(len(FINDINGS))
        if val.truth[:, i].sum() >= min_positives and 0 < train.truth[:, i].sum() < len(known)
    ]
    if not kept:
        raise InputError(f"no finding has {min_positives} positives on val")
    said = np.zeros((len(asked), len(kept)))
    for column, i in enumerate(progress(kept, "probe", unit="finding")):
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(known, train.truth[:, i])
        said[:, column] = fitted.predict_proba(asked)[:, 1]
    scores = probability_scores(
        said,
        val.truth[:, kept],
        [FINDINGS[i] for i in kept],
        groups=val.studies,
        min_positives=min_positives,
    )
    return [s for s in scores if "AUROC" in s.name]


def features_of(encoder: VisionEncoder, data: StudyDataset, device: torch.device) -> np.ndarray:
    """(n, 2 D) of each sample, averaged over its images; stored, for the next time."""
    facts = [encoder.digest(), data.signature, data.digest(), len(data)]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]
    path = cache_root() / "probe" / f"{key}.npy"
    if path.is_file():
        return np.asarray(np.load(path, allow_pickle=False))
    rows: list[np.ndarray] = []
    with torch.inference_mode():
        for start in progress(range(0, len(data), BATCH), "encoding", unit="batch"):
            samples = [data[i] for i in range(start, min(start + BATCH, len(data)))]
            images = [s["images"] if s else [] for s in samples]
            if not all(images):
                raise DataError(f"an image between samples {start} and {start + BATCH} is missing")
            flat = torch.stack([image for several in images for image in several])
            each = pooled(encoder.encode(flat.to(device)).float()).cpu()
            parts = each.split([len(several) for several in images])
            rows += [part.mean(dim=0).numpy() for part in parts]
    found = np.stack(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp.npy")
    np.save(aside, found)
    aside.replace(path)
    return found


def truth_of(data: StudyDataset) -> np.ndarray:
    """(n, F) from the human coding, or, where there is none at all, the labeller; NaN: uncoded."""
    codes = [record.meta.get("codes") for record in data.records]
    rows = np.full((len(data), len(FINDINGS)), np.nan)
    coded = any(codes)
    for i, given in enumerate(codes):
        if coded and not is_coded(given or ()):
            continue
        there: Any = findings_of(given or ())
        if not coded:
            said = label(reference_of(data.turns_of(i)))
            there = {name for name, status in said.items() if status != "negative"}
        rows[i] = [float(name in there) for name in FINDINGS]
    return rows


def _split(encoder: VisionEncoder, data: StudyDataset, device: torch.device) -> Split:
    truth = truth_of(data)
    kept = ~np.isnan(truth[:, 0])
    data.records = [r for r, k in zip(data.records, kept, strict=True) if k]
    if not data.records:
        raise InputError("a split of this corpus is empty, or nobody coded it")
    features = features_of(encoder, data, device)
    return Split(features, truth[kept], [r.study_id for r in data.records])


def measure(
    experiment: Any,
    names: Sequence[str],
    *,
    device: str = "auto",
    strength: float = 1e-3,
    min_positives: int = 8,
) -> dict[str, list[Score]]:
    """Scores of each encoder on the same split.

    Args:
        experiment: An evaluation YAML; its first corpus and split are taken.
        names: As `model.vit_model`, with ``@pixels`` after it for another size.
        device: ``auto``, ``cpu`` or ``cuda``.
        strength: See `probe`.
        min_positives: See `probe`.
    """
    place = distributed.make_accelerator(device, amp=False).device
    found = {}
    for name in names:
        vit_model, _, size = name.partition("@")
        if size and not size.isdigit():
            raise InputError(f"--vit-model {name}: after @ stands a number of pixels")
        encoder = build_vision(vit_model, int(size) if size else None, None).freeze().to(place)
        spec = ImageSpec(**vars(encoder.wants), tokens_per_image=1)
        builder = next(iter(experiment.datasets.values())).build(image_spec=spec)
        train, val = (
            _split(encoder, builder.build(s, "eval"), place)
            for s in ("train", experiment.run.split)
        )
        found[name] = probe(train, val, strength=strength, min_positives=min_positives)
    return found


def as_markdown(found: dict[str, list[Score]], positives: dict[str, int]) -> str:
    """One line a finding; every encoder after the first with its paired difference from it."""
    names = list(found)
    heads = [names[0], *(f"{n} | less the first" for n in names[1:])]
    lines = [f"| AUROC | positives | {' | '.join(heads)} |"]
    lines.append("|---" * (2 + 1 + 2 * (len(names) - 1)) + "|")
    for row in zip(*found.values(), strict=True):
        first = row[0]
        cells = [_cell(first)]
        for other in row[1:]:
            gap = weighted_sum([(1.0, other), (-1.0, first)])
            cells += [_cell(other), f"{gap.value:+.3f} ({gap.low:+.3f} … {gap.high:+.3f})"]
        finding = first.name.rpartition("/")[2]
        lines.append(f"| {finding} | {positives.get(finding, '')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(score: Score) -> str:
    return f"{score.value:.3f} ({score.low:.3f} … {score.high:.3f})"


def main() -> None:
    """Parse, encode, fit, print."""
    from xraygpt.experiment import Evaluation

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg-path", type=Path, required=True, help="names corpus and split")
    parser.add_argument("--vit-model", nargs="+", default=None, help="encoders; the first is base")
    parser.add_argument("--strength", type=float, default=1e-3, help="C of the regression")
    parser.add_argument("--min-positives", type=int, default=8, help="a finding needs on val")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    experiment = load(Evaluation, args.cfg_path, args.options)
    names = args.vit_model or [getattr(experiment.model, "vit_model", "")]
    if not names[0]:
        raise InputError("this YAML's model has no vision encoder: name one with --vit-model")
    found = measure(
        experiment,
        names,
        device=args.device,
        strength=args.strength,
        min_positives=args.min_positives,
    )
    builder = next(iter(experiment.datasets.values())).build(
        image_spec=ImageSpec(image_size=8, mean=(0.5,), std=(0.5,), tokens_per_image=1)
    )
    counts = np.nansum(truth_of(builder.build(experiment.run.split, "eval")), axis=0)
    positives = {name: int(n) for name, n in zip(FINDINGS, counts, strict=True)}
    sys.stdout.write(f"Split `{experiment.run.split}`. Research use only, not for diagnosis.\n\n")
    sys.stdout.write(as_markdown(found, positives))


if __name__ == "__main__":
    from xraygpt.common.cli import guarded

    sys.exit(guarded(main))
