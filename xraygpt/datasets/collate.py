"""Samples -> Batch. The only place where text meets the number of tokens an image takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.datasets.base import Batch, Sample
from xraygpt.processors.prompts import (
    IGNORE_INDEX,
    IMAGE_TOKEN_ID,
    PromptRenderer,
    Turn,
    without_marks,
)


class ImagePacker(Protocol):
    """A model's own view of images: how many tokens each takes, and how it wants them stacked."""

    def tokens(self, image: Tensor) -> int:
        """Placeholders for one entry of `Sample.images`."""

    def pack(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """All images of a batch, in order, as `Batch.image_inputs`."""


class Collator:
    """Makes training batches: right-padded, labels on the answers.

    Args:
        renderer: Turns to ids.
        packer: The model's image processor; None makes text-only batches.
        max_len: Most tokens a row may have: the LLM's context.
        all_tokens: Put labels on every text token, for language modelling.
        extra: Makes of the samples what the task wants beside; None wants nothing.
    """

    def __init__(
        self,
        renderer: PromptRenderer,
        packer: ImagePacker | None,
        *,
        max_len: int,
        all_tokens: bool = False,
        extra: Callable[[Sequence[Sample]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.renderer, self.packer = renderer, packer
        self.max_len, self.all_tokens, self.extra = max_len, all_tokens, extra
        pad = renderer.tokenizer.pad_token_id
        self.pad_id = renderer.tokenizer.eos_token_id if pad is None else pad

    def __call__(self, samples: Sequence[Sample | None]) -> Batch:
        """Collate; samples that were left out (None) are only counted."""
        kept = [s for s in samples if s is not None]
        rows = [self._row(s) for s in kept]
        images = [image for s in kept for image in s["images"]] if self.packer else []
        return self._batch(rows, images, kept, len(samples) - len(kept))

    def prompts(self, samples: Sequence[Sample]) -> Batch:
        """A batch to generate from: left-padded, everything up to where the last answer begins."""
        rows = [self._row(s, ask=True) for s in samples]
        images = [image for s in samples for image in s["images"]] if self.packer else []
        return self._batch(rows, images, samples, 0, left=True)

    def question(self, sample: Sample) -> list[Turn]:
        """The turns before the last answer, with the prompt drawn for this sample."""
        turns = self.renderer.with_prompt(sample["turns"], sample["draw"])
        last = max((i for i, t in enumerate(turns) if t["role"] == "assistant"), default=len(turns))
        return turns[:last]

    def _asked(self, sample: Sample) -> str:
        """What the user said in the turns before the last answer, without marks of images."""
        texts = [t["text"] for t in self.question(sample) if t["role"] == "user"]
        return " ".join(without_marks(" ".join(texts)).split())

    def _row(self, sample: Sample, ask: bool = False) -> tuple[list[int], list[int]]:
        turns = self.question(sample) if ask else None
        if turns is None:
            turns = self.renderer.with_prompt(sample["turns"], sample["draw"])
        runs = [self.packer.tokens(i) for i in sample["images"]] if self.packer else []
        if self.packer is None:
            turns = [Turn(role=t["role"], text=without_marks(t["text"])) for t in turns]
        rendered = self.renderer.render(turns, runs, sample["sample_id"])
        ids, labels = rendered["input_ids"], rendered["labels"]
        if self.all_tokens:
            labels = [IGNORE_INDEX if i == IMAGE_TOKEN_ID else i for i in ids]
        if len(ids) > self.max_len:
            raise DataError(
                f"sample {sample['sample_id']}: {len(ids)} tokens ({sum(runs)} of images), but the "
                f"LLM's context holds {self.max_len}; lower model.max_txt_len or ask less"
            )
        return ids, labels

    def _batch(
        self,
        rows: list[tuple[list[int], list[int]]],
        images: Sequence[Tensor],
        kept: Sequence[Sample],
        skipped: int,
        left: bool = False,
    ) -> Batch:
        names = [s["sample_id"] for s in kept]
        questions = [self._asked(s) for s in kept]
        if not rows:  # a rank must still take part in the step
            rows, names, questions = [([self.pad_id], [IGNORE_INDEX])], [""], [""]
        width = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((len(rows), width), self.pad_id)
        labels = torch.full((len(rows), width), IGNORE_INDEX)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, (ids, targets) in enumerate(rows):
            at = slice(width - len(ids), width) if left else slice(0, len(ids))
            input_ids[i, at], labels[i, at] = torch.tensor(ids), torch.tensor(targets)
            mask[i, at] = 1
        return Batch(
            input_ids=input_ids,
            labels=labels,
            attention_mask=mask,
            image_inputs=self.packer.pack(images) if self.packer and images else {},
            extra=self.extra(kept) if self.extra and kept else {},
            question=questions,
            sample_id=names,
            skipped=skipped,
        )
