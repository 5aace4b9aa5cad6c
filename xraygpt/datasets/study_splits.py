"""Splits that keep studies with near copies of one report together, and a patient's studies too."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.keyed_random import keyed_int
from xraygpt.datasets.near_duplicates import connect_equal, near_duplicate_groups
from xraygpt.datasets.report_signatures import BATCH, BINS, SignatureMaker, has_words, text_digest
from xraygpt.datasets.seen_names import SeenNames
from xraygpt.datasets.splits import SplitRule
from xraygpt.vocabulary.openi import reserved_split

log = logging.getLogger(__name__)

MAX_SHARE, MAX_STUDIES = 0.01, 20
"""A group with more than this share of all studies, and more than 20, is always train."""
_NAMES: tuple[str | None, ...] = (None, "train", "val", "test", "lockbox")
_UNUSED, _TRAIN, _OPEN = 0, 1, -1  # codes of splits; open: not listed


@dataclass(kw_only=True)
class StudySplitRule(SplitRule):
    """How a corpus of studies is split: by study, patient, and near copies of reports."""

    near_duplicates: float | None = None
    """Studies without a listed split whose reports share this fraction of their three-word
    sequences, or more, get the same split; e.g. 0.9. null splits by study or patient only."""
    numbers: Literal["keep", "ignore"] = "keep"
    """Whether different numbers make a difference between near copies. `keep`: a number is a word
    like any other. `ignore`: reports that differ only in numbers are copies."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.include(super().__post_init__)
            check.fraction("near_duplicates")
            message = "must be above 0; null compares no reports"
            check.refuse(self.near_duplicates == 0, "near_duplicates", message)


class StudyRow(NamedTuple):
    """What the split of a study depends on."""

    study_id: str
    patient: object
    listed_split: str | None
    report: str


class StudySplits:
    """The split of each study of a table, in the order of the table.

    Args:
        rule: The rule, with `near_duplicates`.
        rows: The studies, which are read once; a study may have several rows, with questions.
    """

    def __init__(self, rule: StudySplitRule, rows: Iterable[StudyRow]) -> None:
        assert rule.near_duplicates is not None
        self._rule, self._threshold = rule, rule.near_duplicates
        self._points = array("d")
        self._owners = array("q")  # hashes of patients, or of studies without one
        self._digests, self._distinct = array("q"), array("q")
        self._listed = array("b")
        self._splits = self._assign(self._group(self._sign(rows)))

    def __len__(self) -> int:
        return len(self._splits)

    def __getitem__(self, index: int) -> str | None:
        return _NAMES[self._splits[index]]

    def _sign(self, rows: Iterable[StudyRow]) -> np.ndarray:
        """Read all rows and return the signatures of distinct reports; copies need no comparison.

        `_distinct` are the positions of these reports in the table.
        """
        maker, seen = SignatureMaker(), SeenNames()
        signatures = bytearray()  # grows in place
        for reports in _blocks(self._take(row) for row in rows):
            first = len(self._digests) - len(reports)
            digests = self._digests[first:]
            new = [i for i, d in enumerate(digests) if d >= 0 and seen.add(d) == 1]
            self._distinct.extend(first + i for i in new)
            kept, ignored = maker.signatures([reports[i] for i in new])
            signatures += (ignored if self._rule.numbers == "ignore" else kept).tobytes()
        return np.frombuffer(signatures, np.uint16).reshape(-1, BINS)

    def _take(self, row: StudyRow) -> str:
        rule, patient = self._rule, row.patient
        has_patient = patient not in (None, "") and reserved_split(row.study_id) is None
        name = f"patient {patient}" if has_patient else row.study_id
        self._points.append(rule.point(name))
        self._owners.append(keyed_int("group", name) if name else -1)
        self._digests.append(text_digest(row.report) if has_words(row.report) else -1)
        self._listed.append(self._listed_code(row))
        return row.report

    def _listed_code(self, row: StudyRow) -> int:
        if reserved := reserved_split(row.study_id):
            return _NAMES.index(reserved)
        if self._rule.field is None or not row.listed_split:
            return _OPEN
        return _NAMES.index(self._rule.listed(row.listed_split))

    def _group(self, signatures: np.ndarray) -> np.ndarray:
        """Return the group of each row: same patient or study, same report, or near copies."""
        digests = np.array(self._digests)
        count = len(digests)
        if not count:
            return np.empty(0, np.int64)
        groups = connect_equal(np.arange(count), digests)
        labels = np.full(count, -1)
        labels[np.array(self._distinct, np.int64)] = near_duplicate_groups(
            signatures, self._threshold
        )
        groups = connect_equal(groups, labels)
        return connect_equal(groups, np.array(self._owners))

    def _assign(self, groups: np.ndarray) -> np.ndarray:
        """Return the code of each study's split.

        Studies with a listed split keep it. The others of its group get the same split: lockbox
        before test, val and train. A group without listed splits is assigned by the hash of one
        of its studies.
        """
        listed = np.array(self._listed, dtype=np.int8)
        count = len(listed)
        if not count:
            return listed
        highest = np.full(count, _OPEN, dtype=np.int8)
        used = listed > _UNUSED
        np.maximum.at(highest, groups[used], listed[used])
        order = np.lexsort((np.array(self._owners), groups))
        first = order[np.unique(groups[order], return_index=True)[1]]
        hashed = np.zeros(count, dtype=np.int8)
        hashed[groups[first]] = [
            _NAMES.index(self._rule.split_at(self._points[i])) for i in first.tolist()
        ]
        sizes = np.bincount(groups, minlength=count)
        hashed[sizes > _largest(count)] = _TRAIN
        shared = np.where(highest > _UNUSED, highest, hashed)[groups]
        splits: np.ndarray = np.where(listed == _OPEN, shared, listed)
        self._log(sizes[sizes > 0], count)
        return splits

    def _log(self, sizes: np.ndarray, count: int) -> None:
        copies = int(sizes[sizes > 1].sum())
        log.info(
            "near copies (%g of three-word sequences, numbers: %s): %d of %d studies are in %d "
            "groups of several; the largest has %d",
            self._threshold,
            self._rule.numbers,
            copies,
            count,
            int((sizes > 1).sum()),
            int(sizes.max()),
        )
        if sizes.max() > _largest(count):
            log.warning(
                "%d groups of near copies have more than %g %% of all studies each and are train, "
                "so val and test may be smaller than the fractions; raise split.near_duplicates "
                "to split them",
                int((sizes > _largest(count)).sum()),
                100 * MAX_SHARE,
            )


def _largest(count: int) -> float:
    """Return the size above which a group of `count` studies is always train."""
    return max(MAX_SHARE * count, MAX_STUDIES)


def _blocks(reports: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for report in reports:
        block.append(report)
        if len(block) == BATCH:
            yield block
            block = []
    if block:
        yield block
