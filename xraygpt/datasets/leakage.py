"""How many reports of a split also occur in the training split, exactly or as a near copy.

Exact copies are counted whenever a corpus is loaded, from 8-byte digests. Near copies are counted
by `xraygpt.validate`, which stores the result in the cache folder, so that the result page of an
evaluation of the same reports can name it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from xraygpt.common.paths import cache_root
from xraygpt.datasets.base import Record
from xraygpt.datasets.near_duplicates import NearDuplicateIndex
from xraygpt.datasets.report_signatures import SignatureMaker, has_words, text_digest
from xraygpt.prompting.content import strip_marks

log = logging.getLogger(__name__)

THRESHOLD = 0.9  # smallest Jaccard index of near copies, unless the corpus sets its own
COMPARED = ("val", "test")  # splits that are compared with train; a lockbox is not read

Digests = Mapping[str | None, "array[int]"]


@dataclass(frozen=True)
class Leakage:
    """Reports of one split that also occur in train.

    Attributes:
        split: The split.
        reports: Number of reports in it.
        exact: How many occur in train word for word, except for white space and capitals.
        near: How many have a near copy in train, with exact copies; None if not computed.
        near_without_numbers: The same if all numbers count as equal; None if not computed.
        threshold: Smallest Jaccard index of the three-word sequences of near copies.
    """

    split: str
    reports: int
    exact: int
    near: int | None = None
    near_without_numbers: int | None = None
    threshold: float = THRESHOLD

    def __str__(self) -> str:
        text = f"{self.exact:,} of {self.reports:,} reports of {self.split} are also in train"
        if self.near is None:
            return f"{text} word for word"
        return (
            f"{text} word for word; {self.near:,} have a near copy there (similarity "
            f"{self.threshold:g} or more), {self.near_without_numbers:,} if numbers are ignored"
        )


def report_of(record: Record) -> str | None:
    """Return the report of a record that asks for nothing but it; None for other records."""
    turns = record.turns
    if callable(turns) or len(turns) != 2 or turns[1]["role"] != "assistant":
        return None
    report = turns[1]["text"]
    return None if strip_marks(turns[0]["text"]) or not has_words(report) else report


class ReportDigests(dict[str | None, "array[int]"]):
    """Digests of the reports of each split, eight bytes for each."""

    def add(self, split: str | None, record: Record) -> None:
        """Add a record's report, if it has one."""
        report = report_of(record)
        if report is not None:
            self.setdefault(split, array("q")).append(text_digest(report))


def exact_leakage(corpora: Sequence[Digests], train: Sequence[str] = ("train",)) -> list[Leakage]:
    """Count the exact copies in each of val and test that is not trained on.

    Args:
        corpora: Digests of each corpus by split; reports are compared with all of them.
        train: The splits that are trained on.
    """
    trained = np.unique(_join([part for digests in corpora for part in _parts(digests, train)]))
    found = []
    for split in COMPARED:
        if split not in train:
            own = _join([part for digests in corpora for part in _parts(digests, [split])])
            if len(own) and len(trained):
                found.append(Leakage(split, len(own), int(np.isin(own, trained).sum())))
    return found


def near_leakage(
    exact: Leakage, reports: Iterable[str], train: Iterable[str], threshold: float = THRESHOLD
) -> Leakage:
    """Add the number of near copies to a count of exact ones.

    Args:
        exact: The count of exact copies.
        reports: The reports of the split.
        train: The reports that are trained on, of which only some are in memory at a time.
        threshold: Smallest Jaccard index of near copies.
    """
    distinct: dict[int, str] = {}
    copies: Counter[int] = Counter()
    for report in reports:
        digest = text_digest(report)
        distinct.setdefault(digest, report)
        copies[digest] += 1
    maker = SignatureMaker()
    pair = [np.concatenate(s) for s in zip(*maker.batches(distinct.values()), strict=True)]
    indices = [NearDuplicateIndex(signatures, threshold) for signatures in pair]
    for batch in maker.batches(train):
        for index, signatures in zip(indices, batch, strict=True):
            index.compare(signatures)
    weights = np.array([copies[digest] for digest in distinct])
    near, without_numbers = (int(weights[index.found].sum()) for index in indices)
    return replace(exact, near=near, near_without_numbers=without_numbers, threshold=threshold)


def reports_of(records: Iterable[Record]) -> Iterator[str]:
    """Yield the reports of records that have one."""
    yield from (report for report in map(report_of, records) if report is not None)


def store(leakage: Leakage, corpora: Sequence[Digests]) -> None:
    """Store a count for evaluations of the same reports; a full disk is only logged."""
    path = _path(leakage.split, corpora)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(leakage)), encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)


def stored(leakage: Leakage, corpora: Sequence[Digests]) -> Leakage:
    """Return the stored count of the same reports with near copies, or else `leakage`."""
    try:
        row = json.loads(_path(leakage.split, corpora).read_text(encoding="utf-8"))
        found = Leakage(**row)
    except (OSError, ValueError, TypeError):
        return leakage
    return found if (found.reports, found.exact) == (leakage.reports, leakage.exact) else leakage


def _path(split: str, corpora: Sequence[Digests]) -> Path:
    """Return the file for the reports of a split and of train, whatever their order."""
    sha = hashlib.sha256()
    for name in ("train", split):
        digests = np.sort(_join([p for corpus in corpora for p in _parts(corpus, [name])]))
        sha.update(len(digests).to_bytes(8, "little") + digests.tobytes())
    return cache_root() / "leakage" / f"{split}-{sha.hexdigest()[:24]}.json"


def _parts(digests: Digests, splits: Sequence[str]) -> list[array[int]]:
    return [digests[split] for split in splits if split in digests]


def _join(parts: Sequence[array[int]]) -> np.ndarray:
    arrays = [np.frombuffer(part, np.int64) for part in parts if part]
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)
