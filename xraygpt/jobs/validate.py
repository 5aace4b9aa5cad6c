"""Finds problems in the corpora of a YAML file before training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw

from xraygpt.common.errors import DataError, InputError
from xraygpt.common.logging import progress
from xraygpt.common.model_keys import config_value
from xraygpt.datasets.base import Record, Split, reference_text
from xraygpt.datasets.builder import BaseBuilder, build_corpora
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.input_check import InputCheck
from xraygpt.datasets.seen_names import SeenNames
from xraygpt.datasets.token_budget import count_tokens
from xraygpt.evaluation import lockbox
from xraygpt.evaluation.input_report import summary as input_summary
from xraygpt.experiment import NO_IMAGES, Experiment
from xraygpt.jobs.token_budget import collator_of
from xraygpt.jobs.validate_studies import EmbeddingCheck, leaked_reports, studies_in_two_splits
from xraygpt.media.base import MediaRef, read_media_file
from xraygpt.models.base import Collation
from xraygpt.models.llm.llm_files import load_tokenizer

log = logging.getLogger(__name__)

TILE, COLUMNS = 160, 8  # pixels; images per row of the contact sheet
TOKENIZED = 1024  # answers at once
STUDIES_FROM_SCRATCH = 1000  # below, nearly every report comes out the same
STUDIES_TO_FINE_TUNE = 50
FINE_TUNING = "train_configs/own_finetune.yaml"
NOTICE = "Research use only. Contains images of patients: handle as the corpus demands."


def check(experiment: Experiment, sheet: Path | None, *, strict: bool = False) -> list[str]:
    """Read all corpora of `experiment`, except lockboxes, and print their statistics.

    Args:
        experiment: The configuration, whose datasets are read completely. Its LLM's tokenizer,
            if any, counts tokens.
        sheet: Path of the contact sheet; None writes no sheet.
        strict: Whether images that do not look like chest radiographs are a problem, instead of
            being counted in the statistics.

    Returns:
        The problems found, one message each.
    """
    problems: list[str] = []
    tokenizer = _load_tokenizer(experiment.model, problems)
    limit = config_value(experiment.model, "max_txt_len")
    pictures: list[tuple[str, np.ndarray]] = []
    seen: set[MediaRef] = set()  # several datasets may read the same images
    train_studies, train_names = 0, SeenNames()
    collation = _load_collation(experiment.model)
    spec = NO_IMAGES if collation is None else collation.image_spec
    seed = int(getattr(experiment.run, "seed", 0))  # type: ignore[attr-defined]
    builders: list[BaseBuilder] = build_corpora(experiment.datasets, spec, seed)
    for builder in builders:
        label = builder.label
        by_split, survey_problems = builder.records_by_split()
        problems += [f"{label}: {p}" for p in _without_known(survey_problems, problems)]
        problems += [f"{label}: {p}" for p in studies_in_two_splits(by_split)]
        _print_sizes(label, by_split)
        train_studies += _count_new(by_split.get("train", ()), train_names)
        read = [group for split, group in by_split.items() if split != lockbox.SPLIT]
        if not any(map(len, read)):
            problems.append(f"{label} has no samples, so nothing would be learned from it")
        warnings: dict[str, tuple[str, ...]] = {}
        found = _check_images(read, pictures, seen, builder.input_check(), warnings)
        problems += [f"{label}: {p}" for p in found]
        embeddings = EmbeddingCheck()
        problems += [f"{label}: {p}" for p in embeddings.problems(chain.from_iterable(read))]
        if described := embeddings.summary():
            print(f"{label} {described}")
        if warned := input_summary(warnings, len(warnings)):
            if strict:
                problems.append(f"{label}: --strict: {warned}")
            else:
                print(f"{label} input check: {warned}")
        print(f"{label} answers: {_describe_lengths(read, tokenizer, limit)}")
        if collation is not None:
            tokens = list(_count_tokens(builder, collator_of(collation)))
            problems += [f"{label}: {p}" for p in _without_known(tokens, problems)]
    for leakage in leaked_reports(builders):
        print(leakage)
    model = experiment.model
    from_scratch = model.ckpt is None and not model.is_pretrained
    advise_on_size(train_studies, from_scratch=from_scratch)
    if sheet is not None and pictures:
        contact_sheet(pictures, sheet)
        print(f"contact sheet: {sheet}")
    return problems


def _without_known(messages: Sequence[str], problems: Sequence[str]) -> list[str]:
    """Return the messages that no earlier dataset has already caused."""
    return [m for m in messages if not any(p.endswith(m) for p in problems)]


def _print_sizes(label: str, by_split: Mapping[str | None, Sequence[Record]]) -> None:
    for split, records in by_split.items():
        studies = _count_new(records, SeenNames())
        name = split or "(in a split that is not used)"
        unread = ", whose images and answers are not read" if split == lockbox.SPLIT else ""
        print(f"{label} {name}: {len(records)} samples from {studies} studies{unread}")


def _count_new(records: Iterable[Record], names: SeenNames) -> int:
    """Add the studies of records to `names` and return how many of them are new."""
    return sum(names.add(record.study_id) == 1 for record in records)


def advise_on_size(studies: int, *, from_scratch: bool) -> None:
    """Print how many studies the recipe needs, and log a warning if there are fewer.

    Args:
        studies: Number of different studies in the training split.
        from_scratch: Whether the recipe starts from new weights, without any trained model.
    """
    needed = STUDIES_FROM_SCRATCH if from_scratch else STUDIES_TO_FINE_TUNE
    kind = "trains from scratch" if from_scratch else "starts from a trained model"
    print(
        f"{studies:,} studies to train on. This recipe {kind}, for which about {needed:,} studies "
        "or more are needed"
    )
    if studies >= needed:
        return
    if from_scratch:
        log.warning(
            "%d studies are too few to train from scratch: the model would write much the same "
            "report for every image. Start from the model in the box, which needs about %d: "
            "--cfg-path %s",
            studies,
            STUDIES_TO_FINE_TUNE,
            FINE_TUNING,
        )
    else:
        log.warning(
            "%d studies are few even for fine-tuning: the model can pick up their wording, but "
            "hardly anything about the images. Add studies, or use the trained model as it is",
            studies,
        )


def _load_tokenizer(model: Any, problems: list[str]) -> Any:
    source = config_value(model, "llama_model")
    if source is None:
        return None
    try:
        return load_tokenizer(source)
    except InputError as error:
        problems.append(f"token lengths could not be counted: {error}")
        return None


def _load_collation(model: Any) -> Collation | None:
    """Return how batches are made; None if only the whole model knows, or a file is missing."""
    try:
        collation: Collation | None = model.collation()
    except InputError as error:
        print(f"token budget: not computed, since {error}")
        return None
    if collation is None:
        print("token budget: train.py --dry-run computes it with this model")
    return collation


def _count_tokens(builder: BaseBuilder, collate: Collator) -> Iterator[str]:
    """Print the tokens of each split, except lockboxes, and yield the problems."""
    by_split, _ = builder.records_by_split()
    for split in [s for s in by_split if s is not None and s != lockbox.SPLIT]:
        try:
            data = builder.build(cast(Split, split))
        except DataError:  # bad records, which have been reported
            continue
        budget = count_tokens(f"{builder.label} {split}", data, collate)
        if budget is not None:
            print(budget)
            yield from budget.problems()


def _check_images(
    read: Sequence[Sequence[Record]],
    pictures: list[tuple[str, np.ndarray]],
    seen: set[MediaRef],
    input_check: InputCheck | None,
    warnings: dict[str, tuple[str, ...]],
) -> Iterator[str]:
    """Read each image that is not in `seen` and yield the problems.

    Args:
        read: Groups of records whose images are read.
        pictures: Names and pixels for the contact sheet, to which some images are added.
        seen: Images that were read already, to which these are added.
        input_check: Returns the warnings about an image; None checks nothing.
        warnings: Dict to which the warnings about every image are added, by file name.
    """
    all_refs = ((ref, r.sample_id) for r in chain.from_iterable(read) for ref in r.media)
    refs = {ref: n for ref, n in all_refs if ref.kind != "embedding" and ref not in seen}
    seen.update(refs)
    if not refs:
        return
    interval = max(1, len(refs) // (COLUMNS * 6))
    sizes: Counter[tuple[int, ...]] = Counter()
    for i, (ref, sample_id) in enumerate(progress(refs.items(), desc="images", unit="image")):
        try:
            media = read_media_file(ref)
            pixels = media.still_image()
        except DataError as error:
            yield f"record {sample_id}: {error}"
            continue
        sizes[pixels.shape] += 1
        if input_check is not None:
            warnings[ref.name] = input_check(media)
        if i % interval == 0:
            pictures.append((sample_id, pixels))
        if pixels.std() < 0.01:
            yield f"record {sample_id}: {ref.path} contains a single grey level"
    common = ", ".join(f"{n} × {'×'.join(map(str, s))}" for s, n in sizes.most_common(3))
    print(f"images: {sum(sizes.values())} read ({common})")


def _describe_lengths(read: Sequence[Sequence[Record]], tokenizer: Any, limit: int | None) -> str:
    """Return the median, 95th percentile and maximum length of the answers as text."""
    records = chain.from_iterable(read)
    answers = (
        reference_text(list(r.turns("0/0/validate") if callable(r.turns) else r.turns))
        for r in records
    )
    counts = list(_count_lengths(answers, tokenizer))
    if not counts:
        return "none"
    unit = "words" if tokenizer is None else "tokens"
    median, high = np.percentile(counts, [50, 95])
    text = f"median {median:.0f}, 95 % {high:.0f}, longest {max(counts)} {unit}"
    if limit is not None and tokenizer is not None:
        text += f"; {sum(c > limit for c in counts)} exceed max_txt_len ({limit}) and will be cut"
    return text


def _count_lengths(answers: Iterator[str], tokenizer: Any) -> Iterator[int]:
    while batch := list(islice(answers, TOKENIZED)):
        if tokenizer is None:
            yield from (len(answer.split()) for answer in batch)
        else:
            yield from map(len, tokenizer(batch, add_special_tokens=False)["input_ids"])


def contact_sheet(pictures: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """Write a PNG file with named thumbnails and the research-use notice.

    Args:
        pictures: Name and pixels of each image, (H, W) or (H, W, 3) in [0, 1].
        path: The PNG file to write.
    """
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * TILE, rows * (TILE + 14) + 16), 0)
    canvas = ImageDraw.Draw(sheet)
    for i, (name, pixels) in enumerate(pictures):
        grey = pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
        picture = Image.fromarray((grey * 255).astype(np.uint8))
        picture.thumbnail((TILE, TILE))
        x, y = i % COLUMNS * TILE, i // COLUMNS * (TILE + 14)
        sheet.paste(picture, (x, y))
        canvas.text((x + 2, y + TILE), name[:24], fill=200)
    canvas.text((2, sheet.height - 14), NOTICE, fill=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
