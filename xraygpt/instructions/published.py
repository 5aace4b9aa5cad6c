"""The sizes of RadVLM's instruction set, as its authors published them.

N. Deperrois et al.: RadVLM: A multitask conversational vision-language model for radiology.
arXiv:2502.03333; the table of the repository's README. Its text says 1,022,742 items; the rows add
up to 1,115,021.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A row of the published table.

    Attributes:
        pairs: Items before repeats.
        repeats: How often each is used.
    """

    pairs: int
    repeats: int


PUBLISHED: dict[tuple[str, str], Published] = {
    ("mimic_cxr", "report"): Published(230_980, 1),
    ("chexpert_plus", "report"): Published(186_463, 1),
    ("mimic_cxr", "classification"): Published(237_912, 1),
    ("chexpert", "classification"): Published(191_027, 1),
    ("chest_imagenome", "region_grounding"): Published(80_000, 1),
    ("vindr_cxr", "abnormality_grounding"): Published(16_089, 3),
    ("vindr_cxr", "detection"): Published(15_000, 2),
    ("ms_cxr", "phrase_grounding"): Published(971, 3),
    ("padchest_gr", "phrase_grounding"): Published(4_478, 2),
    ("mimic_cxr", "conversation"): Published(86_155, 1),
    ("ms_cxr", "grounded_conversation"): Published(862, 4),
    ("padchest_gr", "grounded_conversation"): Published(2_225, 4),
}
TOTAL = sum(row.pairs * row.repeats for row in PUBLISHED.values())
TOTAL_IN_TEXT = 1_022_742
