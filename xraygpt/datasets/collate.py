"""Samples -> Batch. The only place where text meets the number of tokens a medium takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.datasets.base import Batch, MediaRun, Original, Sample
from xraygpt.media.base import Media
from xraygpt.prompting.content import Turn, plain_text, without_media
from xraygpt.prompting.renderer import (
    IGNORE_INDEX,
    IMAGE_TOKEN_ID,
    PromptRenderer,
    Rendered,
    Run,
)


class MediaCollator(Protocol):
    """A model's own view of media: how many tokens each takes, and how it wants them stacked."""

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        """Placeholders of each medium of one sample, in order; a tiling may depend on all of it."""

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        """The media of a batch, by sample, as `Batch.media_inputs`; there is at least one."""


class Collator:
    """Makes training batches: right-padded, labels on the answers.

    Args:
        renderer: Turns to ids.
        packer: The model's; None makes text-only batches.
        max_len: Most tokens a row may have: the LLM's context.
        all_tokens: Put labels on every text token, for language modelling.
        extra: Makes of the samples what the task wants beside; None wants nothing.
    """

    def __init__(
        self,
        renderer: PromptRenderer,
        media_collator: MediaCollator | None,
        *,
        max_len: int,
        loss_on_all_tokens: bool = False,
        extra: Callable[[Sequence[Sample]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.renderer, self.media_collator = renderer, media_collator
        self.max_len, self.loss_on_all_tokens, self.extra = max_len, loss_on_all_tokens, extra
        pad = renderer.tokenizer.pad_token_id
        self.pad_id = renderer.tokenizer.eos_token_id if pad is None else pad

    def __call__(self, samples: Sequence[Sample | None]) -> Batch:
        """Collate; samples that were left out (None) are only counted."""
        kept = [s for s in samples if s is not None]
        return self._batch([self._row(s) for s in kept], kept, len(samples) - len(kept))

    def prompts(self, samples: Sequence[Sample]) -> Batch:
        """A batch to generate from: left-padded, everything up to where the last answer begins."""
        return self._batch([self._row(s, ask=True) for s in samples], samples, 0, left=True)

    def question(self, sample: Sample) -> list[Turn]:
        """The turns before the last answer, with the prompt drawn for this sample."""
        turns = self.renderer.with_prompt(sample["turns"], sample["rng_key"])
        last = max((i for i, t in enumerate(turns) if t["role"] == "assistant"), default=len(turns))
        return turns[:last]

    def _asked(self, sample: Sample) -> str:
        """What the user said in the turns before the last answer, without marks of media."""
        texts = [plain_text(t) for t in self.question(sample) if t["role"] == "user"]
        return " ".join(" ".join(texts).split())

    def _row(self, sample: Sample, ask: bool = False) -> Rendered:
        name = sample["sample_id"]
        turns = self.question(sample) if ask else None
        if turns is None:
            turns = self.renderer.with_prompt(sample["turns"], sample["rng_key"])
        runs: list[Run] = []
        if self.media_collator is None:
            turns = [without_media(t) for t in turns]
        elif sample["media"]:
            runs = self.media_collator.token_runs(sample["media"])
            if len(runs) != len(sample["media"]):
                raise DataError(
                    f"sample {name}: the model's packer plans {len(runs)} runs of tokens for "
                    f"{len(sample['media'])} images, clips or embeddings"
                )
        rendered = self.renderer.render(turns, runs, name)
        ids = rendered["input_ids"]
        if self.loss_on_all_tokens:
            rendered["labels"] = [IGNORE_INDEX if i == IMAGE_TOKEN_ID else i for i in ids]
        if len(ids) > self.max_len:
            raise DataError(
                f"sample {name}: {len(ids)} tokens ({sum(r.length for r in runs)} of images), but "
                f"the LLM's context holds {self.max_len}; lower model.max_txt_len or ask less"
            )
        return rendered

    def _batch(
        self,
        rows: list[Rendered],
        kept: Sequence[Sample],
        skipped: int,
        left: bool = False,
    ) -> Batch:
        names = [s["sample_id"] for s in kept]
        questions = [self._asked(s) for s in kept]
        if not rows:  # a rank must still take part in the step
            rows = [Rendered(input_ids=[self.pad_id], labels=[IGNORE_INDEX], runs=[])]
            names, questions = [""], [""]
        input_ids, labels, mask, runs = padded(rows, self.pad_id, left)
        return Batch(
            input_ids=input_ids,
            labels=labels,
            attention_mask=mask,
            runs=runs,
            originals=[original_of(m) for s in kept for m in s["media"]] if runs else [],
            media_inputs=self.media_collator.stack([s["media"] for s in kept])
            if self.media_collator and runs
            else {},
            extra=self.extra(kept) if self.extra and kept else {},
            question=questions,
            sample_id=names,
            skipped=skipped,
        )


def original_of(media: Media) -> Original | None:
    """The picture a medium was made of, if its processor says where the pixels went."""
    if media.size is None or media.geometry is None:
        return None
    return Original(*media.size, media.geometry)


def padded(
    rows: Sequence[Rendered], pad_id: int, left: bool
) -> tuple[Tensor, Tensor, Tensor, list[MediaRun]]:
    """Conversations as (B, T) ids, labels and mask, and where their media stand.

    Args:
        rows: One conversation each.
        pad_id: Fills shorter rows.
        left: Pad before them instead of behind.
    """
    width = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORE_INDEX)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    runs: list[MediaRun] = []
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        first = width - length if left else 0
        at = slice(first, first + length)
        input_ids[i, at] = torch.tensor(row["input_ids"])
        labels[i, at] = torch.tensor(row["labels"])
        mask[i, at] = 1
        runs += [MediaRun(i, r.kind, first + r.start, r.length) for r in row["runs"]]
    return input_ids, labels, mask, runs
