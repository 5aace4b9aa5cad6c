"""A linear probe of an encoder: logistic regression on its features, one for each finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import expit
from torch import Tensor

from xraygpt.common import distributed
from xraygpt.common.errors import InputError
from xraygpt.common.logging import progress
from xraygpt.datasets.base import DEFAULT_VOCABULARY, StudyDataset, reference_of
from xraygpt.features import cache as feature_cache
from xraygpt.metrics.probabilities import probability_scores
from xraygpt.metrics.statistics import Score, weighted_sum
from xraygpt.models.vision.base import VisionEncoder, pooled
from xraygpt.models.vision.encoders import build_vision
from xraygpt.models.vision.finding_head import FindingHead
from xraygpt.processors.image import ImageSpec
from xraygpt.vocabulary import vocabulary_of

MIN_CODE_COUNT = 8  # training samples a code needs to be a way to say a finding


@dataclass(frozen=True)
class Split:
    """Features and truth of one split."""

    features: np.ndarray  # (n, 2 D)
    truth: np.ndarray  # (n, F), 1 there, 0 not
    studies: list[str]
    codes: list[Sequence[str]] = field(default_factory=list)  # n, where people coded them
    vocabulary: str = DEFAULT_VOCABULARY  # of the findings

    @property
    def names(self) -> tuple[str, ...]:
        """Of the F findings."""
        return vocabulary_of(self.vocabulary).findings


@dataclass(frozen=True)
class Regressions:
    """Logistic regressions on features as they are."""

    weight: np.ndarray  # (F, 2 D)
    bias: np.ndarray  # (F,)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(n, 2 D) -> (n, F) probabilities."""
        return np.asarray(expit(features @ self.weight.T + self.bias))


def fit(features: np.ndarray, truth: np.ndarray, strength: float) -> Regressions:
    """One regression for each finding.

    Args:
        features: (n, 2 D).
        truth: (n, F), 1 there, 0 not; each finding has both.
        strength: C of scikit-learn's logistic regression, on features of unit variance.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    known = scaler.transform(features)
    rows, biases = [], []
    for there in progress(list(truth.T), "probe", unit="finding"):
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(known, there)
        row = fitted.coef_[0] / scaler.scale_
        rows.append(row)
        biases.append(fitted.intercept_[0] - row @ scaler.mean_)
    return Regressions(np.stack(rows), np.array(biases))


def probe(
    train: Split, val: Split, *, strength: float = 1e-3, min_positives: int = 8
) -> list[Score]:
    """AUROC of each finding with enough positives in both splits, and their mean.

    Args:
        train: Fitted on.
        val: Measured on.
        strength: See `fit`.
        min_positives: A finding needs so many on val.
    """
    kept = [i for i in _learnable(train) if val.truth[:, i].sum() >= min_positives]
    if not kept:
        raise InputError(f"no finding has {min_positives} positives on val")
    scores = probability_scores(
        fit(train.features, train.truth[:, kept], strength)(val.features),
        val.truth[:, kept],
        [train.names[i] for i in kept],
        groups=val.studies,
        min_positives=min_positives,
    )
    return [s for s in scores if "AUROC" in s.name]


def head_of(train: Split, val: Split, encoder: str, *, strength: float, over: float) -> FindingHead:
    """A head for `model.finding_head`, of every finding that train has, and of frequent codes.

    A finding counts as there from the probability on that `over` times its share of the training
    studies reach on val: nothing of val's coding is used. Probabilities of training images, which
    the encoder has seen, would make the thresholds too high.

    Args:
        train: Fitted on.
        val: The encoder has not seen it.
        encoder: Digest of the encoder.
        strength: See `fit`.
        over: How many times as often as in training a finding is named.
    """
    known = vocabulary_of(train.vocabulary)
    kept = [i for i in _learnable(train) if train.names[i] != known.other_finding]
    often = Counter(c.lower() for codes in train.codes for c in set(codes) if known.is_coded([c]))
    codes = sorted(c for c, n in often.items() if n >= MIN_CODE_COUNT and known.findings_of([c]))
    coded = np.array([[c in {x.lower() for x in row} for c in codes] for row in train.codes])
    truth = np.hstack([train.truth[:, kept], coded.reshape(len(train.truth), len(codes))])
    fitted = fit(train.features, truth, strength)
    share = train.truth[:, kept].mean(axis=0)
    said = fitted(val.features)[:, : len(kept)]
    least = [np.quantile(p, max(1 - over * s, 0)) for p, s in zip(said.T, share, strict=True)]
    return FindingHead(
        [train.names[i] for i in kept],
        codes,
        weight=torch.from_numpy(fitted.weight),
        bias=torch.from_numpy(fitted.bias),
        threshold=torch.tensor(least),
        encoder=encoder,
    )


def _learnable(train: Split) -> list[int]:
    """Places of the findings that some training samples have and some have not."""
    counts = train.truth.sum(axis=0)
    return [i for i in range(len(train.names)) if 0 < counts[i] < len(train.truth)]


class _Encoding:
    """What the feature cache wants of a model, for an encoder alone."""

    def __init__(self, encoder: VisionEncoder) -> None:
        self.encoder, self.parameters = encoder, encoder.parameters
        self.cannot: dict[str, str] = {}

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D) float32."""
        return self.encoder.encode(pixel_values).float()

    def feature_key(self) -> str:
        """Hash of the encoder's weights."""
        return self.encoder.digest()


def features_of(
    encoder: VisionEncoder, name: str, data: StudyDataset, place: Accelerator
) -> np.ndarray:
    """(n, 2 D) of each sample, averaged over its images; NaN where an image cannot be read.

    Patch features are those that training and evaluation store, and are stored for them.

    Args:
        encoder: Frozen.
        name: As `model.vit_model` calls it.
        data: Whose images; changed to read stored features.
        place: Where to compute.

    Raises:
        DataError: An image cannot be read, and `data` does not skip such samples.
    """
    model: Any = _Encoding(encoder)
    feature_cache.use_cache(data, model, f"{name} fp32 {encoder.digest()}", place)
    found = np.full((len(data), 2 * encoder.width), np.nan, dtype=np.float32)
    for i in range(len(data)):
        sample = data[i]
        if sample is None:
            continue  # named by the dataset
        images = [media.data for media in sample["media"]]
        each = [image if image.dim() == 2 else _encoded(model, image) for image in images]
        found[i] = pooled(torch.stack(each)).mean(dim=0).numpy()
    return found


def _encoded(model: Any, image: Tensor) -> Tensor:
    frames = image if image.dim() == 4 else image[None]
    return model.encode_frozen(frames.to(model.device)).flatten(0, 1).cpu()


def truth_of(data: StudyDataset) -> np.ndarray:
    """(n, F) from the human coding, or, where there is none at all, the labeller; NaN: uncoded."""
    codes = [record.meta.get("codes") for record in data.records]
    known = vocabulary_of(data.vocabulary)
    rows = np.full((len(data), len(known.findings)), np.nan)
    coded = any(codes)
    for i, given in enumerate(codes):
        if coded and not known.is_coded(given or ()):
            continue
        there = known.findings_of(given or ())
        if not coded:
            there = known.positive(reference_of(data.turns_of(i)))
        rows[i] = [float(name in there) for name in known.findings]
    return rows


def _split(encoder: VisionEncoder, name: str, data: StudyDataset, place: Accelerator) -> Split:
    truth = truth_of(data)
    kept = ~np.isnan(truth[:, 0])
    data.records = [r for r, k in zip(data.records, kept, strict=True) if k]
    features = features_of(encoder, name, data, place)
    read = ~np.isnan(features[:, 0])
    if not read.any():
        raise InputError("a split of this corpus is empty, or nobody coded it")
    studies = [r.study_id for r, k in zip(data.records, read, strict=True) if k]
    codes = [r.meta.get("codes") or () for r, k in zip(data.records, read, strict=True) if k]
    return Split(features[read], truth[kept][read], studies, codes, data.vocabulary)


def splits_of(
    experiment: Any, vit_model: str, place: Accelerator
) -> tuple[VisionEncoder, Split, Split]:
    """An encoder, and the training split and that of the YAML as it sees them.

    Args:
        experiment: An evaluation YAML; its first corpus and split are taken.
        vit_model: As `model.vit_model`, with ``@pixels`` after it for another size.
        place: Where to compute.
    """
    name, _, size = vit_model.partition("@")
    pixels = int(size) if size else None
    encoder = build_vision(name, pixels, None).freeze().to(place.device)
    spec = ImageSpec(**vars(encoder.wants), tokens_per_image=1)
    builder = next(iter(experiment.datasets.values())).build(image_spec=spec)
    train, val = (
        _split(encoder, name, builder.build(s, "eval"), place)
        for s in ("train", experiment.run.split)
    )
    return encoder, train, val


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


def measure(
    experiment: Any,
    names: Sequence[str],
    device: str,
    *,
    strength: float,
    min_positives: int,
    save: Path | None = None,
    over: float = 1.5,
) -> str:
    """Probe encoders on the split of an evaluation YAML; the table of `as_markdown`.

    Args:
        experiment: Names corpus and split.
        names: Encoders; the first is what others are compared with.
        device: ``auto``, ``cpu`` or ``cuda``.
        strength: See `fit`.
        min_positives: See `probe`.
        save: File for the head of each encoder; None keeps none.
        over: See `head_of`.
    """
    place = distributed.make_accelerator(device)
    found = {}
    for name in names:
        encoder, train, val = splits_of(experiment, name, place)
        if save is not None:
            head_of(train, val, encoder.digest(), strength=strength, over=over).save(save)
        found[name] = probe(train, val, strength=strength, min_positives=min_positives)
    builder = next(iter(experiment.datasets.values())).build(
        image_spec=ImageSpec(image_size=8, mean=(0.5,), std=(0.5,), tokens_per_image=1)
    )
    data = builder.build(experiment.run.split, "eval")
    counts, findings = np.nansum(truth_of(data), axis=0), vocabulary_of(data.vocabulary).findings
    positives = {name: int(n) for name, n in zip(findings, counts, strict=True)}
    return as_markdown(found, positives)
