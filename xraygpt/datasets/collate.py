"""Collation of samples into batches, which determines how many tokens each medium occupies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.datasets.base import Batch, MediaRun, Original, Sample
from xraygpt.media.base import Media
from xraygpt.media.content import ContentDigest, row_key
from xraygpt.prompting.content import Turn, plain_text, without_media
from xraygpt.prompting.renderer import (
    IGNORE_INDEX,
    IMAGE_TOKEN_ID,
    PlacedRun,
    PromptRenderer,
    Rendered,
    Run,
)


class MediaCollator(Protocol):
    """How a model prepares media: it counts their tokens and batches their tensors.

    A collator may have a method ``shrink(media, tokens)``, which returns smaller copies of one
    sample's media that take about this number of tokens, or None. It is called for samples that are
    too long. A method ``resized(media)`` returns the height and width in pixels at which the model
    reads each medium, where these are not those of its data.

    A method ``content_digests(media)`` returns what identifies the content of a sample's media, on
    which the random numbers of sampled answers depend, if that is not the digest of each.

    For chat, a collator may have two methods with which each medium is processed only once.
    ``contexts(media)`` returns, for each medium of a sample, what its tokens depend on apart from
    the medium. ``stack_part(media, indices)`` stacks only some media of a sample; without indices,
    it returns what `positions` and `embed` need of all media if their tokens are known.
    """

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        """Return the token runs of one sample's media, in order; each may depend on all media."""

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        """Build `Batch.media_inputs` from the media of each sample, at least one in total."""


class Collator:
    """Builds training batches: right-padded, with labels on the answers.

    Args:
        renderer: Converts turns to token ids.
        media_collator: The model's media collator; None builds text-only batches.
        max_len: Maximum number of tokens per row, the context length of the LLM.
        loss_on_all_tokens: Put labels on every text token, for language modelling.
        extra: Computes the task's further inputs from the samples; None means that it has none.
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
        """Collate samples; skipped samples (None) are only counted."""
        pairs = [self._fit(s, self._all_turns(s)) for s in samples if s is not None]
        rows, present = [row for row, _ in pairs], [sample for _, sample in pairs]
        return self._batch(rows, present, len(samples) - len(present))

    def prompts(self, samples: Sequence[Sample]) -> Batch:
        """Build a batch to generate from: left-padded, up to the beginning of the last answer."""
        pairs = [self._fit(s, self.question(s)) for s in samples]
        rows, fitting = [row for row, _ in pairs], [sample for _, sample in pairs]
        batch = self._batch(rows, fitting, 0, left=True)
        batch["meta"] = [s["meta"] for s in samples]
        return batch

    def question(self, sample: Sample) -> list[Turn]:
        """Return the turns before the last answer, with the prompt sampled for this sample."""
        turns = self._all_turns(sample)
        last = max((i for i, t in enumerate(turns) if t["role"] == "assistant"), default=len(turns))
        return turns[:last]

    def _all_turns(self, sample: Sample) -> list[Turn]:
        return self.renderer.with_prompt(sample["turns"], sample["rng_key"])

    def _question_text(self, sample: Sample) -> str:
        """Return the text of the user turns before the last answer, without media marks."""
        texts = [plain_text(t) for t in self.question(sample) if t["role"] == "user"]
        return " ".join(" ".join(texts).split())

    def _render(self, sample: Sample, turns: list[Turn]) -> Rendered:
        if self.media_collator is None:
            turns = [without_media(t) for t in turns]
        runs = self._token_runs(sample)
        rendered = self.renderer.render(turns, runs, sample["sample_id"])
        ids = rendered["input_ids"]
        if self.loss_on_all_tokens:
            rendered["labels"] = [IGNORE_INDEX if i == IMAGE_TOKEN_ID else i for i in ids]
        return rendered

    def render_both(self, sample: Sample) -> tuple[Rendered, Rendered]:
        """Render a sample as it is, and with its media reduced to fit into the context.

        Args:
            sample: The sample; of its media, only the shape is used.

        Returns:
            Both renderings; the second may still be longer than `max_len`.
        """
        turns = self._all_turns(sample)
        rendered = self._render(sample, turns)
        return rendered, self._reduce(rendered, sample, turns)[0]

    def _fit(self, sample: Sample, turns: list[Turn]) -> tuple[Rendered, Sample]:
        """Render a sample; if it is too long, reduce its media as far as the model allows.

        Raises:
            DataError: The sample does not fit into the context.
        """
        rendered, sample = self._reduce(self._render(sample, turns), sample, turns)
        if len(rendered["input_ids"]) > self.max_len:
            for_media = sum(run.length for run in rendered["runs"])
            raise DataError(
                f"sample {sample['sample_id']} has {len(rendered['input_ids'])} tokens "
                f"({for_media} for images), but the LLM's context is {self.max_len} tokens long; "
                f"{shorten_advice(sample['media'], rendered['runs'], _file_names(sample))}"
            )
        return rendered, sample

    def _reduce(
        self, rendered: Rendered, sample: Sample, turns: list[Turn]
    ) -> tuple[Rendered, Sample]:
        """Reduce the media of a sample whose rendering is too long, as far as possible."""
        shrink = getattr(self.media_collator, "shrink", None)
        for _ in range(3):  # sizes are rounded, so that the first attempt may not be enough
            excess = len(rendered["input_ids"]) - self.max_len
            if excess <= 0 or shrink is None or not sample["media"]:
                break
            for_media = sum(run.length for run in rendered["runs"])
            smaller = shrink(sample["media"], for_media - excess)
            if smaller is None:
                break
            sample = Sample(**{**sample, "media": smaller})
            rendered = self._render(sample, turns)
        return rendered, sample

    def _token_runs(self, sample: Sample) -> list[Run]:
        media = sample["media"]
        if self.media_collator is None or not media:
            return []
        try:
            runs = self.media_collator.token_runs(media)
        except DataError as error:
            raise DataError(f"sample {sample['sample_id']}: {error}") from None
        if len(runs) != len(media):
            raise DataError(
                f"sample {sample['sample_id']}: the model's media collator returns {len(runs)} "
                f"token runs for {len(media)} images, clips or embeddings"
            )
        return runs

    def _batch(
        self,
        rows: list[Rendered],
        samples: Sequence[Sample],
        skipped: int,
        left: bool = False,
    ) -> Batch:
        names = [s["sample_id"] for s in samples]
        questions = [self._question_text(s) for s in samples]
        if not rows:  # this rank must still take part in the step
            rows = [Rendered(input_ids=[self.pad_id], labels=[IGNORE_INDEX], runs=[])]
            names, questions = [""], [""]
        input_ids, labels, mask, runs = pad_rows(rows, self.pad_id, left)
        return Batch(
            input_ids=input_ids,
            labels=labels,
            attention_mask=mask,
            runs=runs,
            originals=[original_image(m) for s in samples for m in s["media"]] if runs else [],
            media_inputs=self.media_collator.stack([s["media"] for s in samples])
            if self.media_collator and runs
            else {},
            extra=self.extra(samples) if self.extra and samples else {},
            question=questions,
            content_key=[row_key(content_digests(self.media_collator, s["media"])) for s in samples]
            or [row_key([])],
            sample_id=names,
            skipped=skipped,
        )


def content_digests(
    collator: MediaCollator | None, media: Sequence[Media]
) -> Sequence[ContentDigest]:
    """Return what identifies the content of a sample's media; see `MediaCollator`."""
    own = getattr(collator, "content_digests", None)
    digests: Sequence[ContentDigest] = [m.content_digest for m in media]
    return digests if own is None else own(media)


def shorten_advice(
    media: Sequence[Media], runs: Sequence[Run] | Sequence[PlacedRun], names: Sequence[str] = ()
) -> str:
    """Return how to shorten a sample that does not fit into the context.

    Args:
        media: All media of the sample.
        runs: Their token runs.
        names: Their names, for the message; if empty, they are numbered.
    """
    clips = [i for i, medium in enumerate(media) if medium.kind == "clip"]
    if not clips or len(runs) != len(media):
        return "lower model.max_txt_len or shorten the question"
    longest = max(clips, key=lambda i: runs[i].length)
    if names:
        name = f"the clip {names[longest]}"
    else:
        name = "the clip" if len(media) == 1 else f"the clip at position {longest + 1}"
    return (
        f"{name} has {len(media[longest].data)} frames and takes {runs[longest].length} tokens: "
        "read fewer of its frames (`frames` of the corpus, such as {num_frames: 16}, or "
        "`sampling` in a table), or smaller ones (model.media.video_max_pixels)"
    )


def _file_names(sample: Sample) -> list[str]:
    """Return the names of a sample's files, if its `meta` has their paths as in prediction."""
    paths = sample["meta"].get("path") or []
    paths = [paths] if isinstance(paths, str) else list(paths)
    names = [Path(str(path)).name for path in paths]
    return names if len(names) == len(sample["media"]) else []


def original_image(media: Media) -> Original | None:
    """Return the size of a medium's image before processing, or None without a geometry."""
    if media.size is None or media.geometry is None:
        return None
    return Original(*media.size, media.geometry)


def pad_rows(
    rows: Sequence[Rendered], pad_id: int, left: bool
) -> tuple[Tensor, Tensor, Tensor, list[MediaRun]]:
    """Pad conversations to ids, labels and a mask of shape (B, T), and locate their media.

    Args:
        rows: The rendered conversations, one per row.
        pad_id: Token id used for padding.
        left: Pad on the left instead of the right.
    """
    width = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORE_INDEX)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    runs: list[MediaRun] = []
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        start = width - length if left else 0
        columns = slice(start, start + length)
        input_ids[i, columns] = torch.tensor(row["input_ids"])
        labels[i, columns] = torch.tensor(row["labels"])
        mask[i, columns] = 1
        runs += [MediaRun(i, r.kind, start + r.start, r.length) for r in row["runs"]]
    return input_ids, labels, mask, runs
