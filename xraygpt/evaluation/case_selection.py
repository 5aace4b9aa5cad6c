"""Selection of the cases shown on a result page."""

from __future__ import annotations

from collections.abc import Sequence

from xraygpt.common.keyed_random import keyed_random

BEST, WORST, RANDOM = "among the best", "among the worst", "random sample"


def sample_indices(count: int, max_cases: int, seed: int) -> list[int]:
    """Return up to `max_cases` random indices below `count`, in ascending order."""
    indices = list(range(count))
    if count > max_cases:
        indices = sorted(keyed_random(seed, "cases").sample(indices, max_cases))
    return indices


def select_cases(
    agreed: Sequence[int], wrong: Sequence[int], max_cases: int, seed: int
) -> dict[int, str]:
    """Select cases: a tenth from the best, a tenth from the worst, and the others at random.

    Args:
        agreed: For each case, the number of items shared by answer and reference.
        wrong: For each case, the number of items in only one of the two.
        max_cases: Number of cases to select; if all cases are selected, the reasons are empty.
        seed: Seed of the random sample.

    Returns:
        The reason why each case is selected, by index in ascending order.
    """
    count = len(agreed)
    if count <= max_cases:
        return dict.fromkeys(range(count), "")
    order = sorted(range(count), key=lambda i: (wrong[i], -agreed[i], i))
    tenth = max_cases // 10
    reasons = dict.fromkeys(order[:tenth], BEST)
    reasons |= dict.fromkeys(order[::-1][:tenth], WORST)
    remaining = [i for i in range(count) if i not in reasons]
    sampled = keyed_random(seed, "cases").sample(remaining, max_cases - len(reasons))
    reasons |= dict.fromkeys(sampled, RANDOM)
    return dict(sorted(reasons.items()))
