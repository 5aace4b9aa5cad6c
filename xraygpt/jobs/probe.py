"""Linear probe of an encoder: one logistic regression per finding on the encoder's features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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
from xraygpt.common.numbers import with_interval
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Record, StudyDataset, reference_text
from xraygpt.datasets.builder import build_corpora
from xraygpt.evaluation import lockbox
from xraygpt.features import cache as feature_cache
from xraygpt.jobs.head_thresholds import (
    HeldOut,
    calibrate,
    count_held_out,
    cross_validated,
    from_run,
    thresholds_for,
)
from xraygpt.metrics.probabilities import probability_scores
from xraygpt.metrics.statistics import Score, weighted_sum
from xraygpt.models.vision.base import VisionEncoder, pooled
from xraygpt.models.vision.encoders import build_vision
from xraygpt.models.vision.finding_head import FindingHead
from xraygpt.models.vision.run_encoder import BASE_SUFFIX
from xraygpt.processors.image import ImageSpec
from xraygpt.vocabulary import get_vocabulary

MIN_CODE_COUNT = 8  # training samples a code needs to get a regression


@dataclass(frozen=True)
class Split:
    """The features and labels of one split."""

    features: np.ndarray  # (n, 2 D)
    labels: np.ndarray  # (n, F), 1 present, 0 absent
    studies: list[str]
    codes: list[Sequence[str]] = field(default_factory=list)  # empty, or one per sample
    vocabulary: str = DEFAULT_VOCABULARY  # vocabulary of the F findings

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the F findings."""
        return get_vocabulary(self.vocabulary).findings


@dataclass(frozen=True)
class Regressions:
    """Logistic regressions on unscaled features."""

    weight: np.ndarray  # (F, 2 D)
    bias: np.ndarray  # (F,)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Compute probabilities of shape (n, F) from features of shape (n, 2 D)."""
        return np.asarray(expit(features @ self.weight.T + self.bias))


def fit(features: np.ndarray, labels: np.ndarray, strength: float) -> Regressions:
    """Fit one regression per finding.

    Args:
        features: Features of shape (n, 2 D).
        labels: Labels of shape (n, F), 1 for present and 0 for absent; each finding needs both.
        strength: C in scikit-learn's logistic regression, on features of unit variance.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    rows, biases = [], []
    for column in progress(list(labels.T), "probe", unit="finding"):
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(scaled, column)
        row = fitted.coef_[0] / scaler.scale_
        rows.append(row)
        biases.append(fitted.intercept_[0] - row @ scaler.mean_)
    return Regressions(np.stack(rows), np.array(biases))


def probe(
    train: Split, val: Split, *, strength: float = 1e-3, min_positives: int = 8
) -> list[Score]:
    """Return the AUROC of each finding that can be learned and evaluated, and their mean.

    Args:
        train: The regressions are fitted on this split.
        val: AUROC is computed on this split.
        strength: See `fit`.
        min_positives: Number of positives in val that a finding needs.

    Raises:
        InputError: No finding has enough positives in val.
    """
    selected = [i for i in learnable(train) if val.labels[:, i].sum() >= min_positives]
    if not selected:
        raise InputError(f"no finding has {min_positives} positives in val; lower --min-positives")
    scores = probability_scores(
        fit(train.features, train.labels[:, selected], strength)(val.features),
        val.labels[:, selected],
        [train.names[i] for i in selected],
        groups=val.studies,
        min_positives=min_positives,
    )
    return [s for s in scores if "AUROC" in s.name]


def fit_finding_head(
    train: Split, encoder: str, *, strength: float, held_out: HeldOut | None = None
) -> FindingHead:
    """Fit a head for `model.finding_head` on the findings and the frequent codes in train.

    Args:
        train: The regressions are fitted on this split.
        encoder: Digest of the encoder's weights.
        strength: See `fit`.
        held_out: Predictions for held-out training images, which calibrate the probabilities and
            determine the thresholds. None makes them by cross-validation, which is right only if
            the encoder was not trained on these images.
    """
    vocabulary = get_vocabulary(train.vocabulary)
    selected = [i for i in learnable(train) if train.names[i] != vocabulary.other_finding]
    codes, code_labels = _frequent_codes(train)
    labels = np.hstack([train.labels[:, selected], code_labels])
    fitted = fit(train.features, labels, strength)
    held_out = held_out or cross_validated(train, selected, strength)
    calibration = calibrate(held_out)
    names = [train.names[i] for i in selected]
    thresholds = thresholds_for(names, held_out, calibration)
    counts = count_held_out(held_out, calibration, dict(zip(names, thresholds, strict=True)))
    return FindingHead(
        names,
        codes,
        weight=torch.from_numpy(calibration.slope * fitted.weight),
        bias=torch.from_numpy(calibration.slope * fitted.bias + calibration.intercept),
        threshold=torch.tensor(thresholds),
        encoder=encoder,
        counts=counts,
    )


def _frequent_codes(train: Split) -> tuple[list[str], np.ndarray]:
    """Return frequent codes that name a finding, and an (n, codes) array of their presence."""
    vocabulary = get_vocabulary(train.vocabulary)
    counts = Counter(
        c.lower() for codes in train.codes for c in set(codes) if vocabulary.is_coded([c])
    )
    codes = sorted(
        c for c, n in counts.items() if n >= MIN_CODE_COUNT and vocabulary.findings_of([c])
    )
    present = np.array([[c in {x.lower() for x in row} for c in codes] for row in train.codes])
    return codes, present.reshape(len(train.labels), len(codes))


def learnable(train: Split) -> list[int]:
    """Return the indices of the findings that some training samples have and some do not."""
    counts = train.labels.sum(axis=0)
    return [i for i in range(len(train.names)) if 0 < counts[i] < len(train.labels)]


class _Encoding:
    """Adapter that gives a bare encoder the model interface of the feature cache."""

    def __init__(self, encoder: VisionEncoder) -> None:
        self.encoder, self.parameters = encoder, encoder.parameters
        self.cannot: dict[str, str] = {}

    @property
    def device(self) -> torch.device:
        """The device of the encoder."""
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """Encode images of shape (N, C, H, W) as float32 patch tokens of shape (N, L, D)."""
        return self.encoder.encode(pixel_values).float()

    def feature_key(self) -> str:
        """Return the hash of the encoder's weights."""
        return self.encoder.digest()


def encode_samples(
    encoder: VisionEncoder, name: str, data: StudyDataset, accelerator: Accelerator
) -> np.ndarray:
    """Compute the features of each sample, averaged over its images.

    Patch features are shared with training and evaluation through the feature cache.

    Args:
        encoder: A frozen encoder.
        name: The encoder's name in `model.vit_model`.
        data: The samples; the dataset is modified to read cached features.
        accelerator: Determines the device to compute on.

    Returns:
        Features of shape (n, 2 D), NaN for samples with an unreadable image.

    Raises:
        DataError: An image cannot be read, and `data` does not skip such samples.
    """
    features = np.full((len(data), 2 * encoder.width), np.nan, dtype=np.float32)
    for i, tokens in _encode_all(encoder, name, data, accelerator):
        features[i] = pooled(torch.stack(tokens)).mean(dim=0).numpy()
    return features


def encode_images(
    encoder: VisionEncoder, name: str, data: StudyDataset, accelerator: Accelerator
) -> Iterator[tuple[Record, list[Tensor]]]:
    """Yield each readable sample with the (L, D) features of its images; see `encode_samples`."""
    for i, tokens in _encode_all(encoder, name, data, accelerator):
        yield data.records[i], tokens


def _encode_all(
    encoder: VisionEncoder, name: str, data: StudyDataset, accelerator: Accelerator
) -> Iterator[tuple[int, list[Tensor]]]:
    model: Any = _Encoding(encoder)
    if len(data):
        feature_cache.use_cache(data, model, f"{name} fp32 {encoder.digest()}", accelerator)
    for i in range(len(data)):
        sample = data[i]
        if sample is None:
            continue  # the dataset has logged the reason
        images = [media.data for media in sample["media"]]
        yield i, [image if image.dim() == 2 else _encode(model, image) for image in images]


def _encode(model: Any, image: Tensor) -> Tensor:
    frames = image if image.dim() == 4 else image[None]
    return model.encode_frozen(frames.to(model.device)).flatten(0, 1).cpu()


def labels_of(data: StudyDataset) -> np.ndarray:
    """Return the labels of the samples, from codes or, if no sample is coded, from the labeller.

    Args:
        data: The samples; a sample's codes are in its record's metadata.

    Returns:
        Labels of shape (n, F), NaN for uncoded samples.
    """
    codes = [record.meta.get("codes") for record in data.records]
    vocabulary = get_vocabulary(data.vocabulary)
    rows = np.full((len(data), len(vocabulary.findings)), np.nan)
    is_coded = any(codes)
    for i, sample_codes in enumerate(codes):
        if is_coded and not vocabulary.is_coded(sample_codes or ()):
            continue
        present = vocabulary.findings_of(sample_codes or ())
        if not is_coded:
            present = vocabulary.positive(reference_text(data.get_turns(i)))
        rows[i] = [float(name in present) for name in vocabulary.findings]
    return rows


def _load_split(
    encoder: VisionEncoder, name: str, data: StudyDataset, accelerator: Accelerator
) -> Split:
    labels = labels_of(data)
    is_coded = ~np.isnan(labels[:, 0])
    data.records = [r for r, coded in zip(data.records, is_coded, strict=True) if coded]
    features = encode_samples(encoder, name, data, accelerator)
    is_readable = ~np.isnan(features[:, 0])
    if not is_readable.any():
        raise InputError("a split of this corpus has no readable samples or no coded findings")
    records = [r for r, readable in zip(data.records, is_readable, strict=True) if readable]
    studies = [r.study_id for r in records]
    codes = [r.meta.get("codes") or () for r in records]
    return Split(
        features[is_readable], labels[is_coded][is_readable], studies, codes, data.vocabulary
    )


def load_splits(
    experiment: Any, vit_model: str, accelerator: Accelerator, split: str
) -> tuple[VisionEncoder, Split, Split]:
    """Build an encoder and compute its features for the training and the evaluation split.

    Args:
        experiment: A configuration; its first corpus is used.
        vit_model: A value for `model.vit_model`, optionally with ``@pixels`` to set the image size.
        accelerator: Determines the device to compute on.
        split: The evaluation split.
    """
    name, _, size = vit_model.partition("@")
    pixels = int(size) if size else None
    encoder = build_vision(name, pixels, None).freeze().to(accelerator.device)
    spec = ImageSpec(**vars(encoder.input_spec), tokens_per_image=1)
    builder = build_corpora(experiment.datasets, spec)[0]
    train, val = (
        _load_split(encoder, name, builder.build(s, "eval"), accelerator) for s in ("train", split)
    )
    return encoder, train, val


def as_markdown(scores: dict[str, list[Score]], positives: dict[str, int]) -> str:
    """Format a table with one row per finding and paired differences from the first encoder.

    Args:
        scores: The AUROC of each finding, by encoder.
        positives: The number of positives in the evaluated split, by finding.
    """
    names = list(scores)
    heads = [names[0], *(f"{n} | minus the first" for n in names[1:])]
    lines = [f"| AUROC | positives | {' | '.join(heads)} |"]
    lines.append("|---" * (2 + 1 + 2 * (len(names) - 1)) + "|")
    for row in zip(*scores.values(), strict=True):
        first = row[0]
        cells = [_cell(first)]
        for other in row[1:]:
            difference = weighted_sum([(1.0, other), (-1.0, first)])
            cells += [
                _cell(other),
                with_interval(difference.as_row(), signed=True),
            ]
        finding = first.name.rpartition("/")[2]
        lines.append(f"| {finding} | {positives.get(finding, '')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(score: Score) -> str:
    return with_interval(score.as_row())


def run_probe(
    experiment: Any,
    names: Sequence[str],
    device: str,
    *,
    strength: float,
    min_positives: int,
    save: Path | None = None,
    held_out_run: Path | None = None,
) -> str:
    """Probe encoders on the split that an evaluation configuration selects.

    Args:
        experiment: The evaluation configuration, which selects the corpus and the split.
        names: Names of the encoders; all others are compared with the first.
        device: ``auto``, ``cpu`` or ``cuda``.
        strength: See `fit`.
        min_positives: See `probe`.
        save: File to which the encoder's finding head is written; None writes no file.
        held_out_run: Run of the encoder's recipe that held training images out; see
            `head_thresholds.from_run`. None sets the thresholds by cross-validation.

    Returns:
        The table from `as_markdown`, after sentences about the lockbox if it was opened.

    Raises:
        InputError: A head is to be fitted with the images of a reserved split.
    """
    split = experiment.run.split
    if save is not None and split in ("test", lockbox.SPLIT):
        raise InputError(f"--save sets thresholds on run.split; it must be val, not {split}")
    accelerator = distributed.make_accelerator(device)
    scores, openings = {}, ""
    for name in names:
        encoder, train, val = load_splits(experiment, name, accelerator, split)
        if split == lockbox.SPLIT:
            openings += f"{name}: {lockbox.open_lockbox(encoder.digest(), 'probe')}\n\n"
        if save is not None:
            held_out = None
            if held_out_run is not None:
                base = name.endswith(BASE_SUFFIX)
                held_out = from_run(held_out_run, base, strength, accelerator)
            digest = encoder.digest()
            fit_finding_head(train, digest, strength=strength, held_out=held_out).save(save)
        scores[name] = probe(train, val, strength=strength, min_positives=min_positives)
    builder = next(iter(experiment.datasets.values())).build(
        image_spec=ImageSpec(image_size=8, mean=(0.5,), std=(0.5,), tokens_per_image=1)
    )
    data = builder.build(split, "eval")
    counts, findings = np.nansum(labels_of(data), axis=0), get_vocabulary(data.vocabulary).findings
    positives = {name: int(n) for name, n in zip(findings, counts, strict=True)}
    return openings + as_markdown(scores, positives)
