"""The average of echovlm, for comparison with its published table.

echovlm (github.com/vukadinovic936/echovlm, MIT) reads traits with the phrases of a rules file and
averages its scores over all of them. This module reads a user's copy of such a file and reproduces
that behaviour, including its faults, from its description; it contains no phrases and no code of
that project. The faults, which the page docs/echo_traits.md lists, make the average useful only
for comparison with other numbers of the same kind.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.metrics.statistics import Score, ratio_score

CORE = "echovlm_core"
"""Name of the average."""

_NUMBER = r"(\d{1,3}(?:\.\d{1,2})?)"
_SLOT = "<#>"
_MISSING = -1.0
_TOO_LARGE = 200.0  # numbers from here on are ignored
_NOTE = "echovlm-compatible, for comparison only"


@dataclass(frozen=True)
class EchoVLMRule:
    """How one trait is read from a report.

    Attributes:
        name: Name of the trait.
        phrases: Phrases of a binary trait, in lower case.
        patterns: Patterns of a regression trait, in the order in which they are tried.
    """

    name: str
    phrases: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()

    @property
    def is_regression(self) -> bool:
        """Whether the trait is a number."""
        return bool(self.patterns)

    def read(self, report: str) -> float:
        """Return 1 or 0 for a binary trait; the number of a regression trait, or -1 without one."""
        if not self.is_regression:
            text = report.replace("\n", "").lower()
            return float(any(phrase in text for phrase in self.phrases))
        for pattern in self.patterns:
            match = pattern.search(report)
            if match:
                return float(match[1])
        return _MISSING


@dataclass(frozen=True)
class EchoVLMRules:
    """A rules file.

    Attributes:
        rules: One rule for each trait, in the order of the file.
        digest: First digits of the file's SHA-256 hash, which scores name.
    """

    rules: tuple[EchoVLMRule, ...]
    digest: str


def load_echovlm_rules(path: Path) -> EchoVLMRules:
    """Read a rules file: a JSON object of trait names and their rules.

    Each rule has ``mode`` (``binary`` or ``regression``) and ``label_sources``, a list of phrases;
    those of a regression contain ``<#>`` where the number is. Other keys are ignored.

    Raises:
        InputError: The file is missing or invalid; the message names the trait and the phrase.
    """
    try:
        content = path.read_bytes()
        tree = json.loads(content.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the rules cannot be read ({error})") from None
    if not isinstance(tree, dict) or not tree:
        raise InputError(f"{path}: expected a JSON object with one entry for each trait")
    rules = tuple(_rule(path, str(name), entry) for name, entry in tree.items())
    return EchoVLMRules(rules, hashlib.sha256(content).hexdigest()[:12])


def _rule(path: Path, name: str, entry: Any) -> EchoVLMRule:
    sources = entry.get("label_sources") if isinstance(entry, dict) else None
    if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources) or not sources:
        raise InputError(f"{path}: {name}: label_sources must be a list of phrases")
    mode = entry.get("mode")
    if mode == "binary":
        return EchoVLMRule(name, phrases=tuple(source.lower() for source in sources))
    if mode != "regression":
        raise InputError(f"{path}: {name}: mode is {mode!r}; expected binary or regression")
    return EchoVLMRule(name, patterns=tuple(_pattern(path, name, source) for source in sources))


def _pattern(path: Path, name: str, source: str) -> re.Pattern[str]:
    """Compile the text before the slot, which is a regular expression, and a number."""
    if _SLOT not in source:
        raise InputError(f"{path}: {name}: the phrase {source!r} has no slot {_SLOT}")
    before = source.split(_SLOT)[0]
    try:
        pattern = re.compile(before + _NUMBER, re.IGNORECASE)
    except re.error as error:
        raise InputError(
            f"{path}: {name}: the phrase {source!r} is not a valid regular expression ({error}); "
            "write \\( for a parenthesis"
        ) from None
    if pattern.groups != 1:
        raise InputError(
            f"{path}: {name}: the phrase {source!r} contains a group; write (?:…) instead of (…), "
            "or \\( for a parenthesis"
        )
    return pattern


def echovlm_scores(
    rules: EchoVLMRules,
    predictions: Sequence[str],
    references: Sequence[str],
    groups: Sequence[str] | None = None,
) -> tuple[list[Score], dict[str, str]]:
    """Compute echovlm's score of each trait, rounded to two decimals, and their mean.

    Binary traits have the balanced accuracy, which echovlm calls AUROC; regression traits have R²
    over the reports in which both texts state a number below 200.

    Args:
        rules: Rules of the user.
        predictions: Generated reports.
        references: Reference reports.
        groups: The study of each report; intervals resample whole studies.

    Returns:
        ``echovlm_core`` and ``echovlm/<trait>``; and reasons, by name, for traits without a value,
        which are not in the mean.
    """
    parts, left_out = [], {}
    for rule in rules.rules:
        truth = np.array([rule.read(text) for text in references], dtype=float)
        guess = np.array([rule.read(text) for text in predictions], dtype=float)
        make = _regression if rule.is_regression else _binary
        score = make(f"echovlm/{rule.name}", truth, guess, groups)
        parts.append(score)
        if math.isnan(score.value):
            why = (
                "fewer than two reports state a number on both sides"
                if rule.is_regression
                else "all references are of one class"
            )
            left_out[score.name] = f"{why}; not in {CORE}"
    return [_core(parts, rules.digest, groups), *parts], left_out


def _binary(name: str, truth: np.ndarray, guess: np.ndarray, groups: Sequence[str] | None) -> Score:
    counts = np.stack([truth * guess, truth, (1 - truth) * guess, 1 - truth], axis=1)
    signature = f"balanced accuracy (echovlm's AUROC), rounded; {_NOTE}"
    return ratio_score(name, counts, _area_of_sums, signature, groups)


def _area_of_sums(sums: np.ndarray) -> float:
    """Compute the area below the two segments of a 0/1 prediction's ROC curve, rounded."""
    hits, positives, alarms, negatives = sums.tolist()
    if not positives or not negatives:
        return math.nan
    x, y = alarms / negatives, hits / positives
    return round(x * y / 2 + (1 - x) * (y + 1) / 2, 2)


def _regression(
    name: str, truth: np.ndarray, guess: np.ndarray, groups: Sequence[str] | None
) -> Score:
    kept = (truth != _MISSING) & (guess != _MISSING) & (truth < _TOO_LARGE) & (guess < _TOO_LARGE)
    shift = float(truth[kept].mean()) if kept.any() else 0.0
    t, e = np.where(kept, truth - shift, 0.0), np.where(kept, guess - truth, 0.0)
    counts = np.stack([kept, t, t * t, e * e], axis=1).astype(float)
    signature = f"R² of reports with both numbers, rounded; {_NOTE}"
    score = ratio_score(name, counts, _r2_of_sums, signature, groups)
    return score


def _r2_of_sums(sums: np.ndarray) -> float:
    """Compute R², rounded; for equal true numbers it is 1 or 0, as in scikit-learn."""
    n, t, tt, errors = sums.tolist()
    if n < 2:
        return math.nan
    total = tt - t * t / n
    if total < 1e-9:
        return 1.0 if errors < 1e-12 else 0.0
    return round(1 - errors / total, 2)


def _core(parts: Sequence[Score], digest: str, groups: Sequence[str] | None) -> Score:
    def ratio(sums: np.ndarray) -> float:
        values = [part.ratio(sums[4 * i : 4 * i + 4]) for i, part in enumerate(parts)]
        defined = [value for value in values if not math.isnan(value)]
        return sum(defined) / len(defined) if defined else math.nan

    counts = np.hstack([part.counts for part in parts])
    signature = f"mean over {len(parts)} traits, rules {digest}; {_NOTE}"
    return ratio_score(CORE, counts, ratio, signature, groups)
