"""Checks of embeddings and of reports that are in two splits, for `xraygpt.validate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from xraygpt.common.errors import DataError
from xraygpt.common.logging import progress
from xraygpt.datasets import leakage
from xraygpt.datasets.base import Record
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.datasets.leakage import Leakage
from xraygpt.media.base import MediaRef, read_media_file


class EmbeddingCheck:
    """Reads all embeddings and keeps only counts, so that memory does not grow with the corpus."""

    def __init__(self) -> None:
        self._rows: Counter[int] = Counter()  # number of studies by rows of embeddings
        self._widths: Counter[int] = Counter()

    def problems(self, records: Iterable[Record]) -> Iterator[str]:
        """Yield a message for each record whose embeddings cannot be read."""
        for record in progress(records, desc="embeddings", unit="study"):
            refs = [ref for ref in record.media if ref.kind == "embedding"]
            if not refs:
                continue
            try:
                shapes = [self._shape(ref) for ref in refs]
            except DataError as error:
                yield f"record {record.sample_id}: {error}"
                continue
            self._rows[sum(rows for rows, _ in shapes)] += 1
            self._widths.update({width for _, width in shapes})

    def _shape(self, ref: MediaRef) -> tuple[int, int]:
        rows, width = read_media_file(ref).data.shape
        return rows, width

    def summary(self) -> str:
        """Return the numbers of studies and rows and the width as text; "" without embeddings."""
        studies = sum(self._rows.values())
        if not studies:
            return ""
        rows = np.repeat(list(self._rows), list(self._rows.values()))
        low, median, high = np.percentile(rows, [0, 50, 100])
        widths = ", ".join(map(str, sorted(self._widths)))
        return (
            f"embeddings: {studies:,} samples read, {low:.0f} to {high:.0f} rows each (median "
            f"{median:.0f}), width {widths}"
        )


def leaked_reports(builders: Sequence[BaseBuilder]) -> Iterator[Leakage]:
    """Yield how many reports of val and of test are also in train, with near copies.

    The counts are stored for evaluations of the same reports.
    """
    corpora = [builder.report_digests() for builder in builders]
    thresholds = (getattr(b.config.split, "near_duplicates", None) for b in builders)
    threshold = next(filter(None, thresholds), leakage.THRESHOLD)
    for exact in leakage.exact_leakage(corpora):
        reports, train = (_reports(builders, split) for split in (exact.split, "train"))
        found = leakage.near_leakage(exact, reports, train, threshold)
        leakage.store(found, corpora)
        yield found


def _reports(builders: Sequence[BaseBuilder], split: str) -> Iterator[str]:
    parts = (builder.records_by_split()[0].get(split, ()) for builder in builders)
    return leakage.reports_of(chain.from_iterable(parts))


def studies_in_two_splits(by_split: Mapping[str | None, Sequence[Record]]) -> Iterator[str]:
    """Yield a message for each study with records in two splits."""
    hashes = [
        np.unique(np.fromiter((hash(r.study_id) for r in records), np.int64, len(records)))
        for records in by_split.values()
    ]
    values, counts = np.unique(np.concatenate([np.empty(0, np.int64), *hashes]), return_counts=True)
    shared = set(values[counts > 1].tolist())
    if not shared:
        return
    splits_of: dict[str, set[str]] = {}
    for split, records in by_split.items():
        for record in records:
            if hash(record.study_id) in shared:
                splits_of.setdefault(record.study_id, set()).add(split or "none")
    for study, splits in sorted(splits_of.items()):
        if len(splits) > 1:
            yield f"study {study} is in two splits: {', '.join(sorted(splits))}"
