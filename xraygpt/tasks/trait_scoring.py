"""Traits in report generation: sampled reports for probabilities, and the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.common.project_paths import ProjectPath
from xraygpt.datasets.base import Batch
from xraygpt.metrics.echovlm import CORE, echovlm_scores, load_echovlm_rules
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.traits import trait_scores
from xraygpt.models.base import BaseModel, Generation
from xraygpt.tasks.payload import Prediction
from xraygpt.vocabulary import Vocabulary
from xraygpt.vocabulary.traits import Trait, TraitReading


@dataclass(kw_only=True)
class TraitSettings:
    """Scores of traits, for vocabularies that have them, such as `echo`."""

    samples: int = 0
    """Number of reports to sample for each study, in addition to the answer. The share of them in
    which a trait is positive is its probability, from which AUROC and calibration are computed. 0
    samples none; each sample costs as much as an answer."""
    temperature: float = 1.0
    """Temperature of these samples."""
    echovlm_rules: ProjectPath | None = None
    """Your copy of a rules file in the format of echovlm's `per_section.json`, for an average that
    can be compared with echovlm's. null computes none."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(0, "samples")
            check.refuse(self.samples == 1, "samples", "must be 0 or at least 2, got 1")
            check.above(0, "temperature")


def sample_traits(
    model: BaseModel,
    prompts: Batch,
    generation: Generation,
    settings: TraitSettings,
    vocabulary: Vocabulary,
) -> list[list[dict[str, float]]]:
    """Sample reports and return their traits.

    Args:
        model: Model that writes reports.
        prompts: Left-padded prompts of B rows.
        generation: Decoding settings of the answer, whose length limit and guidance are used.
        settings: Number of samples and their temperature.
        vocabulary: Vocabulary with traits.

    Returns:
        For each row the traits of each sampled report, as from `trait_row`; empty lists if nothing
        is sampled.

    Raises:
        InputError: The model cannot sample.
    """
    rows: list[list[dict[str, float]]] = [[] for _ in prompts["question"]]
    for number in range(settings.samples if vocabulary.traits else 0):
        sampled = replace(
            generation,
            do_sample=True,
            num_beams=1,
            temperature=settings.temperature,
            top_p=1.0,
            candidates=1,
            references=0,
            recombine=False,
            seed=generation.seed + 1 + number,
        )
        if number == 0:
            model.check_generation(sampled)
        for row, text in zip(rows, model.generate(prompts, sampled), strict=True):
            row.append(trait_row(vocabulary.read_traits(text), vocabulary.traits))
    return rows


def trait_row(reading: TraitReading, traits: Sequence[Trait]) -> dict[str, float]:
    """Return the traits of a report that are positive, as 1, and its numbers."""
    row: dict[str, float] = {}
    for trait in traits:
        value = reading.values.get(trait.name)
        if value is None:
            continue
        if trait.is_number and value.number is not None:
            row[trait.name] = value.number
        elif not trait.is_number and value.is_positive(trait):
            row[trait.name] = 1.0
    return row


def score_traits(
    predictions: Sequence[Prediction], settings: TraitSettings, vocabulary: Vocabulary
) -> tuple[list[Score], dict[str, str]]:
    """Compute the scores of traits, and the average of echovlm if there are rules for it.

    Returns:
        The scores; and reasons, by name, for those without a value.
    """
    scores: list[Score] = []
    left_out: dict[str, str] = {}
    texts, references = [p.prediction for p in predictions], [p.reference for p in predictions]
    studies = [p.study_id for p in predictions]
    if vocabulary.traits:
        probabilities, samples = _probabilities(predictions, vocabulary)
        scores, left_out = trait_scores(
            vocabulary.traits,
            [vocabulary.read_traits(text) for text in texts],
            [vocabulary.read_traits(text) for text in references],
            studies,
            probabilities=probabilities,
            samples=samples,
        )
    if settings.echovlm_rules is not None:
        try:
            rules = load_echovlm_rules(settings.echovlm_rules)
        except InputError as error:
            return scores, {**left_out, CORE: str(error)}
        core, missing = echovlm_scores(rules, texts, references, studies)
        scores, left_out = scores + core, left_out | missing
    return scores, left_out


def _probabilities(
    predictions: Sequence[Prediction], vocabulary: Vocabulary
) -> tuple[np.ndarray | None, int]:
    """Return probabilities (n, k) of the traits that are no numbers, and the number of samples.

    They are shares of sampled reports, or else the probabilities that the model predicts; a trait
    without probabilities is NaN. None if a prediction has neither, such as one that is copied from
    the training split.
    """
    names = [trait.name for trait in vocabulary.traits if not trait.is_number]
    counts = {len(p.payload.get("trait_samples", ())) for p in predictions}
    if len(counts) == 1 and (samples := counts.pop()):
        shares = [
            [sum(name in row for row in p.payload["trait_samples"]) / samples for name in names]
            for p in predictions
        ]
        return np.array(shares), samples
    given = [p.payload.get("probabilities", {}) for p in predictions]
    if not all(any(name in row for name in names) for row in given):
        return None, 0
    return np.array([[row.get(name, np.nan) for name in names] for row in given]), 0
