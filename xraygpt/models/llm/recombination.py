"""Recombination of sampled answers: sentences of all candidates improve the chosen one.

Of a few dozen samples, even the best has sentences that most others lack, and lacks sentences that
most have. Selecting among new combinations of sentences by the criterion that selects among the
samples (minimum Bayes risk, as in system combination for translation; Rosti et al. 2007, NAACL)
costs no further samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from xraygpt.models.llm.candidates import Overlap, Words, split_words
from xraygpt.processors.text import split_sentences

POOL = 12
MAX_CHANGES = 6

Sentences = tuple[str, ...]


def recombine(
    answers: Sequence[str],
    chosen: int,
    bonus: Callable[[str], float] | None = None,
    references: int = 0,
) -> str:
    """Change sentences of the chosen answer as long as this makes it more similar to the others.

    Each change removes a sentence, or adds or exchanges one for a sentence of another answer. Of
    all changes, the best one is made, at most `MAX_CHANGES` times. The sentences tried are the
    `POOL` most frequent ones and the `POOL` that raise the bonus most; a sentence that improves
    nothing is not tried again.

    Args:
        answers: The texts of the candidates and then of the references.
        chosen: Index of the answer to change.
        bonus: A value added to the mean similarity of a text to the others, which is in [0, 1].
        references: As in `minimum_bayes_risk`.
    """
    split = [tuple(split_sentences(answer)) for answer in answers]
    overlap = Overlap([tuple(split_words(answer)) for answer in answers[-references:]])
    counts = Counter(sentence for sentences in split for sentence in dict.fromkeys(sentences))
    words = lru_cache(None)(lambda sentence: tuple(split_words(sentence)))

    def score(sentences: Sentences) -> float:
        joined: Words = sum(map(words, sentences), ())
        return overlap.mean_f1(joined) + (bonus(" ".join(sentences)) if bonus else 0.0)

    best = split[chosen]
    best_score = score(best)
    pool = _pool(best, counts, bonus)
    for _ in range(MAX_CHANGES):
        scores = {change: score(change.report) for change in _changes(best, pool)}
        change = max(scores, key=scores.__getitem__, default=None)
        if change is None or scores[change] <= best_score:
            break
        helpful = {c.added for c, value in scores.items() if value > best_score}
        pool = [sentence for sentence in pool if sentence in helpful]
        best, best_score = change.report, scores[change]
    return answers[chosen] if best == split[chosen] else " ".join(best)


def _pool(
    report: Sentences, counts: Counter[str], bonus: Callable[[str], float] | None
) -> list[str]:
    """Return the sentences that may be added, the most frequent ones first."""
    frequent = [sentence for sentence, _ in counts.most_common()]
    if bonus is None:
        return frequent[:POOL]
    before = bonus(" ".join(report))
    gains = {s: bonus(" ".join((*report, s))) - before for s in frequent}
    raising = sorted((s for s in frequent if gains[s] > 0), key=lambda s: -gains[s])
    return list(dict.fromkeys([*frequent[:POOL], *raising[:POOL]]))


class _Change(NamedTuple):
    report: Sentences
    added: str  # empty if a sentence is only removed


def _changes(report: Sentences, pool: Sequence[str]) -> Iterator[_Change]:
    """Yield the reports that differ from one by one removed, added or exchanged sentence."""
    new = [sentence for sentence in pool if sentence not in report]
    for i in range(len(report) + 1):
        before, after = report[:i], report[i:]
        yield from (_Change((*before, s, *after), s) for s in new)
        if after:
            yield from (_Change((*before, s, *after[1:]), s) for s in new)
        if after and len(report) > 1:
            yield _Change((*before, *after[1:]), "")
