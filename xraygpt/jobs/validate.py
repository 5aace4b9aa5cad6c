"""Everything that is wrong with the corpora of a YAML, found before training."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from xraygpt.common.errors import DataError, InputError
from xraygpt.common.logging import progress
from xraygpt.datasets.base import Record, reference_of
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.experiment import NO_IMAGES, Experiment
from xraygpt.media.base import MediaRef, read
from xraygpt.models.llm.llm_files import load_tokenizer

log = logging.getLogger(__name__)

TILE, COLUMNS = 160, 8  # pixels, pictures a row of the contact sheet
NOTICE = "Research use only. Contains images of patients: handle as the corpus demands."


def check(experiment: Experiment, sheet: Path | None) -> list[str]:
    """Everything that is wrong with the corpora of `experiment`; prints what is there.

    Args:
        experiment: Its datasets are read whole; its tokenizer, if it names an LLM, counts tokens.
        sheet: Where the contact sheet goes; None makes none.
    """
    problems: list[str] = []
    tokenizer = _tokenizer(experiment.model, problems)
    limit = getattr(experiment.model, "max_txt_len", None)
    pictures: list[tuple[str, np.ndarray]] = []
    seen: set[MediaRef] = set()  # several datasets may be one folder, asked in different ways
    for label, config in experiment.datasets.items():
        builder: BaseBuilder = config.build(image_spec=NO_IMAGES)
        by_split, found = builder.survey()
        problems += [f"{label}: {p}" for p in found if not any(q.endswith(p) for q in problems)]
        problems += [f"{label}: {p}" for p in _two_splits(by_split)]
        for split, records in by_split.items():
            studies = len({r.study_id for r in records})
            where = split or "(a split nobody asks for)"
            print(f"{label} {where}: {len(records)} samples of {studies} studies")
        everything = [r for records in by_split.values() for r in records]
        if not everything:
            problems.append(f"{label}: no sample at all, so nothing would be learnt from it")
        problems += [f"{label}: {p}" for p in _images(everything, pictures, seen)]
        print(f"{label} answers: {_lengths(everything, tokenizer, limit)}")
    if sheet is not None and pictures:
        contact_sheet(pictures, sheet)
        print(f"contact sheet: {sheet}")
    return problems


def _tokenizer(model: Any, problems: list[str]) -> Any:
    source = getattr(model, "llama_model", None)
    if source is None:
        return None
    try:
        return load_tokenizer(source)
    except InputError as error:
        problems.append(f"token lengths not counted: {error}")
        return None


def _two_splits(by_split: Mapping[str | None, Sequence[Record]]) -> Iterator[str]:
    """Studies that stand in more than one split."""
    where: dict[str, set[str]] = defaultdict(set)
    for split, records in by_split.items():
        for record in records:
            where[record.study_id].add(split or "none")
    for study, splits in sorted(where.items()):
        if len(splits) > 1:
            yield f"study {study} is in two splits: {', '.join(sorted(splits))}"


def _images(
    records: Sequence[Record], pictures: list[tuple[str, np.ndarray]], seen: set[MediaRef]
) -> Iterator[str]:
    """Read every image not seen before; keep some for the contact sheet."""
    named = ((ref, r.sample_id) for r in records for ref in r.media)
    refs = {ref: n for ref, n in named if ref.kind != "embedding" and ref not in seen}
    seen.update(refs)
    if not refs:
        return
    every = max(1, len(refs) // (COLUMNS * 6))
    sizes: Counter[tuple[int, ...]] = Counter()
    for i, (ref, sample_id) in enumerate(progress(refs.items(), desc="images", unit="image")):
        try:
            pixels = read(ref).still()
        except DataError as error:
            yield f"record {sample_id}: {error}"
            continue
        sizes[pixels.shape] += 1
        if i % every == 0:
            pictures.append((sample_id, pixels))
        if pixels.std() < 0.01:
            yield f"record {sample_id}: {ref.path} is one flat tone"
    common = ", ".join(f"{n} × {'×'.join(map(str, s))}" for s, n in sizes.most_common(3))
    print(f"images: {sum(sizes.values())} read ({common})")


def _lengths(records: Sequence[Record], tokenizer: Any, limit: int | None) -> str:
    answers = [
        reference_of(list(r.turns("0/0/validate") if callable(r.turns) else r.turns))
        for r in records
    ]
    if not answers:
        return "none"
    unit = "words" if tokenizer is None else "tokens"
    if tokenizer is None:
        counts = [len(a.split()) for a in answers]
    else:
        counts = [len(ids) for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]]
    middle, high = np.percentile(counts, [50, 95])
    text = f"median {middle:.0f}, 95 % {high:.0f}, longest {max(counts)} {unit}"
    if limit is not None and tokenizer is not None:
        text += f"; {sum(c > limit for c in counts)} longer than max_txt_len ({limit}) will be cut"
    return text


def contact_sheet(pictures: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """Small pictures with their names, and the research-use notice, as one PNG."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * TILE, rows * (TILE + 14) + 16), 0)
    rng_key = ImageDraw.Draw(sheet)
    for i, (name, pixels) in enumerate(pictures):
        grey = pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
        picture = Image.fromarray((grey * 255).astype(np.uint8))
        picture.thumbnail((TILE, TILE))
        x, y = i % COLUMNS * TILE, i // COLUMNS * (TILE + 14)
        sheet.paste(picture, (x, y))
        rng_key.text((x + 2, y + TILE), name[:24], fill=200)
    rng_key.text((2, sheet.height - 14), NOTICE, fill=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
