"""The work behind `python -m xraygpt.prepare_instructions`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.formats import ROW_FORMATS, dataset_info
from xraygpt.instructions.planning import (
    Plan,
    check_overlaps,
    collect_patients,
    find_overlaps,
)
from xraygpt.instructions.records import SPLITS
from xraygpt.instructions.settings import InstructionSet
from xraygpt.instructions.writing import ITEMS, Result, find_thresholds, join_parts, write_parts

MANIFEST = "manifest.json"


def write_instruction_set(settings: InstructionSet, out: Path, workers: int) -> Result:
    """Write an instruction set, or continue an interrupted run.

    Args:
        settings: The YAML file.
        out: Folder for the files.
        workers: Number of processes.

    Raises:
        InputError: Patients are in two splits.
        DataError: A file of a collection is missing or damaged.
    """
    collections = settings.build()
    work = out / "work"
    databases = {name: each.database(work) for name, each in collections.items()}
    db = collect_patients(settings, databases, ":memory:")
    overlaps = find_overlaps(db)
    excluded = check_overlaps(settings, overlaps, db, work / "excluded.sqlite")
    db.close()
    plan = Plan(settings, databases, excluded, {})
    chunks = plan.chunks(collections)
    plan = replace(plan, thresholds=find_thresholds(plan, chunks, workers))
    parts = work / "parts"
    result = write_parts(plan, chunks, parts, workers)
    written = []
    for split in SPLITS:
        for name in ("items", *settings.output.formats):
            form = ITEMS if name == "items" else ROW_FORMATS.get(name)
            if form is None:
                continue
            path = out / form.folder / f"{split}{form.suffix}"
            if join_parts(parts, f"{split}.{name}", chunks, path, form):
                written.append(path)
    shared = [path.name for path in written if path.parent.name == "sharegpt"]
    if shared:
        write_text_atomic(out / "sharegpt" / "dataset_info.json", dataset_info(shared))
    facts = _manifest(settings, collections, result)
    write_text_atomic(out / MANIFEST, json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(parts)
    return result


def _manifest(
    settings: InstructionSet, collections: dict[str, Collection], result: Result
) -> dict[str, Any]:
    return {
        "use": "research use only",
        "items": sum(result.items.values()),
        "boxes": settings.output.boxes,
        "seed": settings.output.seed,
        "mixture": [
            {
                "entry": entry.title(), "into": entry.target, "items": result.items[i],
                "left_out": dict(result.left_out.get(i, {})),
            }
            for i, entry in enumerate(settings.mixture)
        ],
        "collections": {
            name: {
                "collection": COLLECTIONS.name_of(type(each)), "title": each.title,
                "licence": each.licence, "credentialed": each.credentialed,
            }
            for name, each in collections.items()
        },
        "missing_images": len(result.missing),
    }  # fmt: skip
