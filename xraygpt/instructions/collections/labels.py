"""The 14 labels of CheXpert and MIMIC-CXR, and what follows from them.

J. Irvin et al.: CheXpert: A large chest radiograph dataset with uncertainty labels and expert
comparison. AAAI 2019; figure 1 shows which finding includes which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xraygpt.instructions.records import Label
from xraygpt.instructions.tables import Tables

NO_FINDING = "No Finding"
DEVICES = "Support Devices"
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
    "Fracture", "Lung Lesion", "Lung Opacity", "Pleural Effusion", "Pleural Other", "Pneumonia",
    "Pneumothorax", DEVICES,
)  # fmt: skip
COLUMNS = (NO_FINDING, *FINDINGS)
# Finding -> the finding that includes it.
PARENTS = {
    "Cardiomegaly": "Enlarged Cardiomediastinum",
    "Lung Lesion": "Lung Opacity",
    "Edema": "Lung Opacity",
    "Consolidation": "Lung Opacity",
    "Pneumonia": "Consolidation",
    "Atelectasis": "Lung Opacity",
}
_VALUES: dict[float, Label] = {1.0: "positive", 0.0: "negative", -1.0: "uncertain"}


def read_labels(cells: Sequence[str | None]) -> tuple[dict[str, Label], bool]:
    """Return the labels of a row, and whether it is labelled as without any finding.

    An empty cell is no label: the report does not mention the finding. A positive finding makes
    those that include it positive, also where they are empty or negative. ``No Finding`` beside a
    positive finding other than support devices is ignored.

    Args:
        cells: The cells of `COLUMNS`: 1, 0, -1 or None.

    Raises:
        ValueError: A cell has another value.
    """
    found = {
        name: _read_label(name, cell)
        for name, cell in zip(COLUMNS, cells, strict=True)
        if cell is not None
    }
    normal = found.pop(NO_FINDING, "negative") == "positive"
    labels = with_parents(found)
    positive = {name for name, value in labels.items() if value != "negative"}
    return labels, normal and positive <= {DEVICES}


def _read_label(name: str, cell: str) -> Label:
    try:
        return _VALUES[float(cell)]
    except (ValueError, KeyError):
        raise ValueError(f"the label {name} is {cell!r}, not 1, 0, -1 or empty") from None


def with_parents(labels: Mapping[str, Label]) -> dict[str, Label]:
    """Return the labels with every finding positive that includes a positive one."""
    result = dict(labels)
    for name in FINDINGS:
        parent = PARENTS.get(name)
        while result.get(name) == "positive" and parent is not None:
            result[parent] = "positive"
            parent = PARENTS.get(parent)
    return result


def count_contradictions(tables: Tables, table: str, example: str) -> list[tuple[str, int, str]]:
    """Count what `read_labels` repairs, in one pass.

    Args:
        tables: The database.
        table: The table with `COLUMNS`.
        example: Column with the name of a row.

    Returns:
        A text, the number of rows, and one of them, for each kind.
    """
    kinds = contradictions(table)
    parts = ", ".join(
        f'count(CASE WHEN {c} THEN 1 END), min(CASE WHEN {c} THEN "{example}" END)'
        for _, c in kinds
    )
    row = tables.row(f'SELECT {parts} FROM "{table}"') or ()
    return [(text, row[2 * i], row[2 * i + 1] or "") for i, (text, _) in enumerate(kinds)]


def contradictions(table: str) -> list[tuple[str, str]]:
    """Return what `read_labels` repairs: a text and a condition on the columns of a table."""
    found = []
    below: dict[str, list[str]] = {}  # finding -> those that it includes, over all steps
    for child in PARENTS:
        parent = PARENTS.get(child)
        while parent is not None:
            below.setdefault(parent, []).append(child)
            parent = PARENTS.get(parent)
    for parent, names in below.items():
        positive = " OR ".join(f'CAST({table}."{name}" AS REAL) = 1' for name in names)
        empty = f'{table}."{parent}" IS NULL AND ({positive})'
        negative = f'CAST({table}."{parent}" AS REAL) = 0 AND {table}."{parent}" IS NOT NULL'
        found.append((f"{parent} empty beside a positive finding that it includes", empty))
        uncertain = f'CAST({table}."{parent}" AS REAL) = -1'
        for word, condition in (("negative", negative), ("uncertain", uncertain)):
            text = f"{parent} {word} beside a positive finding that it includes"
            found.append((text, f"{condition} AND ({positive})"))
    others = [name for name in FINDINGS if name != DEVICES]
    positive = " OR ".join(f'CAST({table}."{name}" AS REAL) = 1' for name in others)
    condition = f'CAST({table}."{NO_FINDING}" AS REAL) = 1 AND ({positive})'
    found.append((f"{NO_FINDING} beside a positive finding", condition))
    return found
