"""RadGraph F1: overlap of the entities and relations that an annotator finds in two reports.

Annotations have RadGraph's format (Jain et al. 2021, "RadGraph: Extracting Clinical Entities and
Relations from Radiology Reports")::

    {"entities": {"1": {"tokens": "effusion", "label": "Observation::definitely present",
                        "relations": [["located_at", "2"]], …}, …}, …}

The three rewards are those of Delbrouck et al. 2022 ("Improving the Factual Correctness of
Radiology Report Generation with Semantic Rewards"): F1 between the two reports' sets of

* ``simple``: entities, each with its words and label;
* ``partial``: entities as in ``simple``, each with whether it has any relation;
* ``complete``: relations, each with the words and label of its start and the words of its end, and
  entities without relations. As in the published code, words are lower-cased in relations only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.errors import DataError, InputError
from xraygpt.metrics.statistics import Score, mean_score

Annotation = Mapping[str, Any]
Facts = frozenset[tuple[Any, ...]]

INSTALL = (
    "radgraph 0.1.18 requires transformers below 5, so give it a separate environment:\n"
    "  python -m venv radgraph-env\n"
    "  radgraph-env/bin/pip install radgraph==0.1.18 'transformers>=4.39,<5'\n"
    "then unpack radgraph-xl.tar.gz from huggingface.co/StanfordAIMI/RRG_scorers to "
    "FOLDER/radgraph-xl, annotate there and pass the annotations to radgraph_scores"
)


@dataclass(frozen=True)
class Rewards:
    """RadGraph F1 of one pair, each in [0, 1]."""

    simple: float
    partial: float
    complete: float


def rewards(prediction: Annotation, reference: Annotation) -> Rewards:
    """Compute the three rewards for one pair; all are 0 if either side has no entity.

    Raises:
        DataError: If an annotation lacks a part or has a relation to an entity that does not exist.
    """
    predicted, expected = _entities(prediction), _entities(reference)
    return Rewards(
        *(_f1(facts(predicted), facts(expected)) for facts in (_simple, _partial, _complete))
    )


def entity_relation_f1(prediction: Annotation, reference: Annotation) -> float:
    """Compute the mean of entity F1 and relation F1, in [0, 1], an input to RadCliQ.

    A relation consists of its kind and of the words and labels at both ends (Yu et al. 2023,
    "Evaluating progress in automatic chest X-ray radiology report generation"). An empty side
    scores 0.

    Raises:
        DataError: See `rewards`.
    """
    predicted, expected = _entities(prediction), _entities(reference)
    entities = _f1(_simple(predicted), _simple(expected))
    return (entities + _f1(_relations(predicted), _relations(expected))) / 2


def radgraph_scores(
    predictions: Sequence[Annotation],
    references: Sequence[Annotation],
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute the mean of each reward over samples.

    Args:
        predictions: Annotations of the generated reports.
        references: Annotations of the reference reports.
        groups: The study of each sample; intervals resample whole studies.

    Raises:
        DataError: See `rewards`.
    """
    pairs = [rewards(p, r) for p, r in zip(predictions, references, strict=True)]
    return [
        mean_score(
            f"RadGraph_{level}",
            [getattr(pair, level) for pair in pairs],
            f"RadGraph F1, {level}",
            groups,
        )
        for level in ("simple", "partial", "complete")
    ]


def annotate(reports: Sequence[str], folder: Path, model: str = "radgraph-xl") -> list[Annotation]:
    """Annotate reports with the radgraph package; an empty report has no entity.

    Args:
        reports: Texts of the reports.
        folder: Contains the unpacked model in a subfolder named after it. The encoder is the one
            named in the model's ``config.json``: a local path, or a name in the cache of
            transformers.
        model: ``radgraph-xl``, ``radgraph`` or ``modern-radgraph-xl``.

    Raises:
        InputError: If the package or the model is missing, or the package does not work with the
            installed transformers; the message says how to install them.
    """
    missing = [n for n in ("config.json", "weights.th") if not (folder / model / n).is_file()]
    if missing:
        raise InputError(f"{folder / model} is missing {' and '.join(missing)}. {INSTALL}")
    nonempty = [i for i, r in enumerate(reports) if r.strip()]
    results = _run_annotator([reports[i] for i in nonempty], folder, model)
    annotations: list[Annotation] = [{"entities": {}} for _ in reports]
    for number, row in enumerate(nonempty):
        if str(number) not in results:
            raise InputError(f"radgraph could not annotate report {row}")
        annotations[row] = results[str(number)]
    return annotations


def _run_annotator(reports: list[str], folder: Path, model: str) -> Mapping[str, Any]:
    """Return the annotations by the index of the report, as a string."""
    try:
        from radgraph import RadGraph
    except ImportError as error:
        raise InputError(f"radgraph cannot be imported ({error}). {INSTALL}") from error
    try:
        annotator = RadGraph(model_type=model, model_cache_dir=str(folder))
        annotations: Mapping[str, Any] = annotator(reports) if reports else {}
    except (AttributeError, TypeError, OSError, RuntimeError) as error:
        raise InputError(f"radgraph failed ({error}). {INSTALL}") from error
    return annotations


@dataclass(frozen=True)
class _Entity:
    words: str
    label: str
    relations: tuple[tuple[str, str, str], ...]  # kind, then words and label of the other end


def _entities(annotation: Annotation) -> list[_Entity]:
    """Read the entities and resolve their relations."""
    try:
        raw = annotation["entities"]
        return [
            _Entity(
                str(e["tokens"]),
                str(e["label"]),
                tuple(
                    (str(kind), str(raw[other]["tokens"]), str(raw[other]["label"]))
                    for kind, other in e["relations"]
                ),
            )
            for e in raw.values()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"not a RadGraph annotation ({type(error).__name__}: {error}); expected "
            '{"entities": {"1": {"tokens": …, "label": …, "relations": [[kind, "2"], …]}, …}}'
        ) from error


def _simple(entities: Sequence[_Entity]) -> Facts:
    return frozenset((e.words, e.label) for e in entities)


def _partial(entities: Sequence[_Entity]) -> Facts:
    return frozenset((e.words, e.label, bool(e.relations)) for e in entities)


def _complete(entities: Sequence[_Entity]) -> Facts:
    unrelated = {(e.words, e.label) for e in entities if not e.relations}
    related = {
        (e.words.lower(), e.label, kind, other.lower())
        for e in entities
        for kind, other, _ in e.relations
    }
    return frozenset(unrelated | related)


def _relations(entities: Sequence[_Entity]) -> Facts:
    return frozenset((e.words, e.label, *r) for e in entities for r in e.relations)


def _f1(predicted: Facts, expected: Facts) -> float:
    """Compute the F1 of two sets, which is 0 if either is empty."""
    if not predicted or not expected:
        return 0.0
    return 2 * len(predicted & expected) / (len(predicted) + len(expected))
