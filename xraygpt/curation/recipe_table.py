"""The table that the IU X-ray recipes read: reports as dictated, with their human coding.

One row per picture: `image`, `image_id`, `view`, `study`, the four sections, `mesh_major` (coded by
people), `mesh_automatic`, `licence` and `split`. The recipes clean the text themselves.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.errors import DataError, InputError
from xraygpt.curation.files import write_left_out, write_private
from xraygpt.curation.folder import HELD_BACK_FILE, MANIFEST_FILE, link_pictures, manifest_heading
from xraygpt.curation.pictures import find_view_table, select_pictures, strip_suffixes
from xraygpt.curation.select import Filters, Selection, read_corpus
from xraygpt.curation.sources import SourceReport
from xraygpt.vocabulary.openi import openi_study, published_split, reserved_split

TABLE_FILE = "reports.jsonl"
CODED_CORPORA = ("openi", "openi_kaggle")
"""Corpora with a human coding."""
OUTSIDE = "extra"  # split of the studies outside the published protocol
_SECTIONS = ("indication", "comparison", "findings", "impression")


def write_recipe_table(
    corpus_name: str,
    raw: Path,
    images: Path,
    out: Path,
    filters: Filters,
    *,
    splits: Path | None = None,
    projections: Path | None = None,
    copy: bool = False,
) -> dict[str, Any]:
    """Write `reports.jsonl`, `image/` and the manifest; every report with a picture is kept.

    Args:
        corpus_name: One of `CODED_CORPORA`.
        raw: Its reports as downloaded.
        images: The folder that contains its pictures.
        out: The folder to write.
        filters: Which views to select; the word limits are not applied.
        splits: R2Gen's `annotation.json`, which lists the studies of train, val and test; None
            uses the lists in the package.
        projections: Kaggle's table of views, for a corpus that does not name them.
        copy: Whether to copy pictures instead of hard-linking them.

    Returns:
        The manifest.

    Raises:
        InputError: The folder already contains a table.
        DataError: The corpus, its pictures or a table is missing or unreadable.
    """
    if (out / TABLE_FILE).exists():
        raise InputError(f"{out} already contains {TABLE_FILE}; name another folder")
    listed = None if splits is None else read_r2gen_splits(splits)
    selection = read_corpus(corpus_name, raw)
    views = None if projections is None else find_view_table(projections)
    select_pictures(selection, images, filters, views=views)
    if not selection.reports:
        raise DataError(f"no report in {raw} has a picture in {images}")
    out.mkdir(parents=True, exist_ok=True)
    write_left_out(selection.left_out, out / HELD_BACK_FILE)
    names = link_pictures(selection.all_pictures(), out / "image", copy)
    rows = _build_rows(selection, names, listed)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_private(out / TABLE_FILE, "".join(f"{line}\n" for line in lines))
    manifest = {
        **manifest_heading(selection, raw),
        "splits_from": "lists in xraygpt" if splits is None else splits.name,
        "filters": {"views": filters.views},
        "reports": len(selection.reports),
        "left_out": dict(Counter(row.stage for row in selection.left_out)),
        "pictures": len(rows),
        "pictures_by_split": dict(Counter(row["split"] for row in rows)),
        "pictures_by_view": dict(Counter(row["view"] or "unknown" for row in rows)),
        "coded_pictures": sum(bool(row["mesh_major"]) for row in rows),
    }
    write_text_atomic(out / MANIFEST_FILE, json.dumps(manifest, indent=1))
    return manifest


def _build_rows(
    selection: Selection, names: Mapping[Path, str], listed: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    return [
        {
            "image": f"image/{names[picture.path]}",
            "image_id": strip_suffixes(names[picture.path]),
            "view": picture.view.lower(),
            "study": report.source_id,
            **{section: report.sections.get(section, "") for section in _SECTIONS},
            "mesh_major": list(report.codes),
            "mesh_automatic": list(report.automatic_codes),
            "licence": selection.corpus.terms,
            "split": _split_of(report, listed),
        }
        for report in selection.reports
        for picture in selection.pictures[report.source_id]
    ]


def _split_of(report: SourceReport, listed: Mapping[str, str] | None) -> str:
    """Return the split of a study; the reserved studies keep theirs, whatever a file lists."""
    study = report.source_id
    if listed is None:
        return published_split(study) or OUTSIDE
    return reserved_split(study) or listed.get(study, OUTSIDE)


def read_r2gen_splits(path: Path) -> dict[str, str]:
    """Read which studies R2Gen's `annotation.json` lists in train, val and test.

    The file contains ``{"train": [{"id": "CXR1_IM-0001", "image_path", "report", "split"}], …}``.

    Returns:
        The split of each study, by ``CXR<number>``.

    Raises:
        DataError: The file cannot be read, or is not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        splits = {
            openi_study(row["id"]): name for name in ("train", "val", "test")
            for row in content[name]
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not R2Gen's annotation.json for IU X-ray, which has the lists train, val "
            f"and test of rows with an id: {type(error).__name__}"
        ) from None
    if None in splits:
        raise DataError(f"{path} contains ids that are not OpenI's, such as CXR1_IM-0001")
    return {str(study): name for study, name in splits.items()}
