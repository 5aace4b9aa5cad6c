"""How many tokens the samples of a corpus have, counted before training from the files' headers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.datasets.base import Sample, StudyDataset, read_media
from xraygpt.datasets.collate import Collator
from xraygpt.media.base import Kind, Media, MediaRef
from xraygpt.media.outline import is_constant, outline, zeros
from xraygpt.processors.base import BaseProcessor
from xraygpt.prompting.renderer import NO_TEXT, PlacedRun

MAX_SAMPLES = 2000  # counted of each corpus and split
MAX_CACHED = 2**16  # media, whose outlines are kept
MAX_SIZES, MAX_NAMED = 8, 5  # lines about media, and samples, in a table
_PLURALS: dict[str, str] = {
    "image": "images", "clip": "clips", "volume": "volumes", "embedding": "embeddings",
}  # fmt: skip


class MediumSize(NamedTuple):
    """A medium in the table; sizes are (height, width) in pixels.

    Attributes:
        kind: The kind.
        frames: Number of frames that the model reads; 1 for an image.
        size: Size in the file; None if unknown.
        resized: Size at which the model reads it; None for an embedding.
        tokens: Number of tokens.
    """

    kind: Kind
    frames: int
    size: tuple[int, int] | None
    resized: tuple[int, int] | None
    tokens: int


@dataclass
class TokenBudget:
    """The tokens of a corpus's samples in one split.

    Attributes:
        name: Corpus and split, as in "cmr train".
        samples: Number of samples.
        context: Maximum number of tokens per sample.
        tokens: For each counted sample, its tokens by kind of medium, and those of "text"; before
            media are reduced.
        sizes: How often each size of medium occurs.
        shrunk: Ids of the samples that fit after their media are reduced.
        too_long: For each sample that does not fit even then, its id and its number of tokens.
        failed: For each sample that cannot be used, its id and the reason.
    """

    name: str
    samples: int
    context: int
    tokens: list[Counter[str]] = field(default_factory=list)
    sizes: Counter[MediumSize] = field(default_factory=Counter)
    shrunk: list[str] = field(default_factory=list)
    too_long: list[tuple[str, int]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def totals(self) -> list[int]:
        """The number of tokens of each counted sample, before media are reduced."""
        return [counts.total() for counts in self.tokens]

    def problems(self) -> list[str]:
        """Return a message for each sample that would stop training."""
        long = [
            f"record {name}: {count} tokens, but the context is {self.context} tokens long"
            for name, count in self.too_long
        ]
        return [*long, *(f"record {name}: {reason}" for name, reason in self.failed)]

    def __str__(self) -> str:
        """Return the table as text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        counted = len(self.tokens) + len(self.failed)
        which = "" if counted == self.samples else f", of which {counted:,} evenly spread ones"
        yield (
            f"{self.name}: tokens per sample; {self.samples:,} samples{which}; context "
            f"{self.context:,} tokens"
        )
        if self.tokens:
            yield f"  {'':12}{'median':>9}{'95 %':>9}{'longest':>9}"
            kinds = [kind for kind in _PLURALS if any(counts[kind] for counts in self.tokens)]
            for kind in ("text", *kinds):
                yield _row(_PLURALS.get(kind, kind), [counts[kind] for counts in self.tokens])
            yield _row("all", self.totals)
        sizes = sorted(self.sizes.items(), key=lambda item: -item[0].tokens * item[1])
        for size, count in sizes[:MAX_SIZES]:
            yield f"  {describe_size(size, count)}"
        if len(sizes) > MAX_SIZES:
            rest = sum(count for _, count in sizes[MAX_SIZES:])
            yield f"  {rest:,} media of {len(sizes) - MAX_SIZES} other sizes"
        if self.shrunk:
            yield f"  media reduced to fit into the context: {_named(self.shrunk)}"
        if self.too_long:
            names = [f"{name} ({count:,} tokens)" for name, count in self.too_long]
            yield f"  do not fit into the context: {_named(names)}"
        if not self.shrunk and not self.too_long:
            yield "  all fit into the context"
        if self.failed:
            names = [f"{name} ({reason})" for name, reason in self.failed]
            yield f"  cannot be used: {_named(names)}"


def _row(name: str, counts: Sequence[int]) -> str:
    median, high = np.percentile(counts, [50, 95])
    return f"  {name:12}{median:>9.0f}{high:>9.0f}{max(counts):>9}"


def _named(names: Sequence[str]) -> str:
    more = ", …" if len(names) > MAX_NAMED else ""
    noun = "sample" if len(names) == 1 else "samples"
    return f"{len(names):,} {noun}: {', '.join(names[:MAX_NAMED])}{more}"


def describe_size(size: MediumSize, count: int) -> str:
    """Return a line such as "9 images of 124 x 118, read at 112 x 112: 16 tokens each"."""
    noun, each = (size.kind, "") if count == 1 else (_PLURALS[size.kind], " each")
    frames = "" if size.kind in ("image", "embedding") else f" of {size.frames} frames"
    text = f"{count:,} {noun}{frames}"
    if size.size is not None:
        text += f" of {size.size[1]} x {size.size[0]}"
    if size.resized is not None and size.resized != size.size:
        text += f", read at {size.resized[1]} x {size.resized[0]}"
    return f"{text}: {size.tokens:,} tokens{each}"


def count_tokens(
    name: str, data: StudyDataset, collate: Collator, max_samples: int = MAX_SAMPLES
) -> TokenBudget | None:
    """Count the tokens of samples as training would, without decoding their media.

    Args:
        name: Corpus and split.
        data: The samples.
        collate: Makes the batches of the run.
        max_samples: Largest number of samples to count; of more, evenly spread ones are counted.

    Returns:
        The table, or None if there are no samples or the model reads no text.
    """
    if not len(data) or collate.renderer is NO_TEXT:
        return None
    budget = TokenBudget(name, len(data), collate.max_len)
    count, reader = min(len(data), max_samples), _OutlineReader(data)
    for index in (i * len(data) // count for i in range(count)):
        record = data.records[index]
        try:
            _count_sample(budget, reader.sample(index), collate)
        except (InputError, ValueError) as error:
            reason = str(error).removeprefix(f"sample {record.sample_id}").lstrip(": ")
            budget.failed.append((record.sample_id, reason))
    return budget


def _count_sample(budget: TokenBudget, sample: Sample, collate: Collator) -> None:
    before, after = collate.render_both(sample)
    tokens = Counter({"text": len(before["input_ids"])})
    for run in before["runs"]:
        tokens[run.kind] += run.length
        tokens["text"] -= run.length
    if len(after["input_ids"]) > collate.max_len:
        budget.too_long.append((sample["sample_id"], len(after["input_ids"])))
    elif len(before["input_ids"]) > collate.max_len:
        budget.shrunk.append(sample["sample_id"])
    if before["runs"]:
        budget.sizes.update(_sizes(sample["media"], before["runs"], collate.media_collator))
    budget.tokens.append(tokens)


def _sizes(
    media: Sequence[Media], runs: Sequence[PlacedRun], collator: Any
) -> Iterator[MediumSize]:
    resized = getattr(collator, "resized", None)
    pixels = resized(media) if resized is not None else [_data_size(medium) for medium in media]
    for medium, run, size in zip(media, runs, pixels, strict=True):
        frames = 1 if medium.kind in ("image", "embedding") else len(medium.data)
        yield MediumSize(run.kind, frames, medium.size, size, run.length)


def _data_size(medium: Media) -> tuple[int, int] | None:
    if medium.kind == "embedding":
        return None
    height, width = medium.data.shape[-2:]
    return int(height), int(width)


class _OutlineReader:
    """Reads the outlines of a corpus's media, and processes them as the corpus does."""

    def __init__(self, data: StudyDataset) -> None:
        self.data = data
        plain = getattr(data.read_media, "func", None) is read_media
        keywords = getattr(data.read_media, "keywords", {}) if plain else {}
        self.processor: BaseProcessor | None = keywords.get("processor")
        self.cache: dict[MediaRef, Media] = {}
        self.frame: tuple[int, ...] | None = None  # shape of an image, if all have the same

    def sample(self, index: int) -> Sample:
        """Return a sample with outlines of its media."""
        record = self.data.records[index]
        key = self.data.get_rng_key(record)
        return Sample(
            sample_id=record.sample_id, study_id=record.study_id,
            media=[self._read(ref, key) for ref in record.media], turns=record.get_turns(key),
            meta=record.meta, rng_key=key,
        )  # fmt: skip

    def _read(self, ref: MediaRef, rng_key: str) -> Media:
        if ref in self.cache:
            return self.cache[ref]
        if self.processor is None:  # a corpus with a reader of its own
            return self.data.read_media(ref, rng_key)
        processor = self.processor
        medium = outline(ref, min_side=getattr(processor, "min_side", None))
        if medium.kind != "embedding":
            medium = self._process(medium, processor, rng_key)
        if len(self.cache) < MAX_CACHED:
            self.cache[ref] = medium
        return medium

    def _process(self, medium: Media, processor: BaseProcessor, rng_key: str) -> Media:
        """Process an image, or the first frame of a clip or volume."""
        if not is_constant(medium.data):
            return processor.process(medium, rng_key)
        is_image = medium.kind == "image"
        frame = self.frame
        if frame is None:
            first = medium if is_image else dataclasses.replace(medium, data=medium.data[:1])
            shape = processor.process(first, rng_key).data.shape
            if not is_image and (len(shape) != 4 or shape[0] != 1):  # not frame by frame
                return processor.process(medium, rng_key)
            frame = tuple(shape if is_image else shape[1:])
            self.frame = frame if processor.fixed_size else None
        return medium.with_data(zeros(frame if is_image else (len(medium.data), *frame)))
