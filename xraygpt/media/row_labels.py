"""View and type of each row of an embedding matrix, stored in the one string `MediaRef.view`.

A study's embeddings are rows of a matrix, often one for each video. Their labels are written as
``view:type``, joined by ``|``, such as ``A4C:colour|PLAX:|:``, where the last row has no label.
"""

from __future__ import annotations

from collections.abc import Sequence

from xraygpt.common.errors import DataError

ROW_SEPARATOR, TYPE_SEPARATOR = "|", ":"


def join_row_labels(views: Sequence[str], types: Sequence[str]) -> str:
    """Join the labels of all rows; "" if no row has one.

    Args:
        views: View of each row, such as ``A4C``; "" if it is not known.
        types: Type of each row, such as ``colour``; "" if it is not known.

    Raises:
        DataError: The numbers of views and types differ, or a label contains ``|`` or ``:``.
    """
    if len(views) != len(types):
        raise DataError(f"there are {len(views)} views, but {len(types)} types")
    for label in (*views, *types):
        if ROW_SEPARATOR in label or TYPE_SEPARATOR in label:
            raise DataError(
                f"the label {label!r} contains {ROW_SEPARATOR!r} or {TYPE_SEPARATOR!r}, which "
                "separate labels; rename it"
            )
    if not any(views) and not any(types):
        return ""
    pairs = zip(views, types, strict=True)
    return ROW_SEPARATOR.join(f"{view}{TYPE_SEPARATOR}{kind}" for view, kind in pairs)


def split_row_labels(view: str, rows: int) -> list[tuple[str, str]]:
    """Return the view and the type of each row.

    Args:
        view: `MediaRef.view` or `Media.view`. Without separators, it is the view of all rows.
        rows: Number of rows of the embedding matrix.

    Raises:
        DataError: The number of labels is not `rows`.
    """
    if ROW_SEPARATOR not in view and TYPE_SEPARATOR not in view:
        return [(view, "")] * rows
    labels = view.split(ROW_SEPARATOR)
    if len(labels) != rows:
        raise DataError(f"the labels {view!r} are for {len(labels)} rows, but there are {rows}")
    pairs = [label.partition(TYPE_SEPARATOR) for label in labels]
    return [(name, kind) for name, _, kind in pairs]


def row_views(view: str) -> list[str]:
    """Return the views in `MediaRef.view`, one for each label."""
    return [label.partition(TYPE_SEPARATOR)[0] for label in view.split(ROW_SEPARATOR)]
