"""Attention maps: which image patches the model attended to for a word or sentence of its answer.

    map over patches = attention of these tokens to the image's queries (LLM)
                       x cross-attention from the queries to the patches (Q-Former)

Both are averaged over layers and heads, as in the joint attention of Abnar and Zuidema (2020)
without its residual path. Attention shared by all words of the answer says nothing about these
words, and patches to which the queries always attend say nothing about this image. Therefore the
mean over the full answer is subtracted from the first factor, and the average over reference
images, if there are any, from the second.

A map explains the model and is not evidence of a disease. `tests/conversation/test_attention.py`
checks the maps on phantoms, where the lesion's pixels are known. Notation: Q queries, L patches,
F frames.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from xraygpt.common.errors import InputError
from xraygpt.conversation.answer import AnswerContext
from xraygpt.conversation.chat import Conversation
from xraygpt.conversation.engine import EncodedMedium, Engine, render_runs
from xraygpt.media.base import Media, media_from_tensor
from xraygpt.models.capabilities import AttentionMaps, require
from xraygpt.models.tracing import eager_attention
from xraygpt.processors.image import Fit

MIN_REFERENCES = 8
"""Minimum number of reference images; with fewer, no average is subtracted."""
SMOOTHING = 0.4
"""Standard deviation of the Gaussian that smooths a displayed map, in patches."""
MAX_ROWS = 400
"""Maximum number of an answer's tokens from which its mean attention is computed."""


@dataclass(frozen=True)
class ImageAttention:
    """Attention to one image of a conversation, for selected words of an answer.

    Attributes:
        heat: Non-negative float32 value per patch, (h, w), or (F, h, w) for a clip. The unit is the
            same for all images of a conversation; all values are 0 if none is above average.
        image_share: This image's share of the words' attention to images, in [0, 1].
        images_share: The share of all attention of the words that went to images, in [0, 1].
    """

    heat: Tensor
    image_share: float
    images_share: float


class AttentionMapper:
    """Computes attention maps for the answers of an engine's conversations.

    Args:
        engine: The chat model. If it cannot trace its attention, `maps` raises an error.

    Attributes:
        num_references: Number of images in the subtracted average; 0 if none is subtracted.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_references = 0
        self._average: Tensor | None = None

    def set_baseline(self, images: Iterable[Media | Tensor]) -> int:
        """Compute the average over reference images; it needs at least `MIN_REFERENCES` images.

        Args:
            images: Output of the model's image processor.

        Returns:
            Number of reference images.
        """
        total: Any = 0
        count = 0
        for image in images:
            total = total + self._trace([as_media(image)], "")[0][1].mean(dim=0)
            count += 1
        if count >= MIN_REFERENCES:
            self._average, self.num_references = total / count, count
        return count

    def maps(
        self, conversation: Conversation, start: int, end: int, index: int = -1
    ) -> list[ImageAttention]:
        """Compute maps for a range of characters of an answer.

        Args:
            conversation: The conversation with the answer.
            start: Index of the first character in the answer's text.
            end: Index after the last character.
            index: Index of the answer in the history; -1 is the last.

        Returns:
            One map for each image shown up to this answer.

        Raises:
            InputError: There is no such answer, image or range of characters, or the model cannot
                trace its attention.
        """
        context = conversation.answer_context(index)
        if not context.media:
            raise InputError("no image was shown before this answer")
        first, last = self._token_range(context, start, end)
        traced = self._trace([medium.media for medium in context.media], context.question)
        rows, first, last = self._mean_rows(context, first, last)
        attention = self._attention_to_queries(context, [tokens for tokens, _ in traced], rows)
        to_queries = attention[first:last].mean(dim=0)
        weights = _excess(to_queries, attention.mean(dim=0))
        total = float(to_queries.sum())
        maps, offset = [], 0
        for tokens, to_patches in traced:
            queries = slice(offset, offset + len(tokens))
            offset += len(tokens)
            frame_weights = weights[queries].view(to_patches.shape[0], 1, -1)
            if self._average is not None and self._average.shape == to_patches.shape[1:]:
                to_patches = (to_patches - self._average).clamp(min=0)
            heat = _to_grid((frame_weights @ to_patches).squeeze(1))
            share = float(to_queries[queries].sum()) / total if total else 0.0
            maps.append(ImageAttention(heat if len(heat) > 1 else heat[0], share, total))
        return maps

    def _token_range(self, context: AnswerContext, start: int, end: int) -> tuple[int, int]:
        """Return the range of the answer's tokens that contain these characters."""
        if not 0 <= start < end <= len(context.answer):
            raise InputError(f"the answer has {len(context.answer)} characters, not {start}..{end}")
        ids = context.ids[context.start :]
        decode = self.engine.renderer.tokenizer.decode
        before = decode(ids, skip_special_tokens=True).find(context.answer)
        start, end = start + max(before, 0), end + max(before, 0)

        def length(count: int) -> int:
            return len(decode(ids[:count], skip_special_tokens=True))

        counts = range(len(ids) + 1)
        first = bisect.bisect_right(counts, start, key=length) - 1
        last = bisect.bisect_left(counts, end, key=length)
        return first, max(min(last, len(ids)), first + 1)

    @torch.inference_mode()
    def _trace(self, media: Sequence[Media], question: str) -> list[tuple[Tensor, Tensor]]:
        """Return each medium's tokens (F · Q, H) and their attention to patches (F, Q, L)."""
        engine = self.engine
        with engine.lock:
            runs = engine.token_runs([EncodedMedium(medium) for medium in media])
            batch = engine.batch(render_runs(runs), media, question)
            traced = require(engine.model, AttentionMaps).traced_tokens(batch)
            return [(tokens, to_patches.cpu()) for tokens, to_patches in traced]

    def _mean_rows(self, context: AnswerContext, first: int, last: int) -> tuple[slice, int, int]:
        """Return the rows that predict the answer's tokens, and the indices of first..last in them.

        The token at position t is predicted by row t - 1. A long answer is represented by
        `MAX_ROWS` rows around these tokens.
        """
        begin, end = self._token_range(context, 0, len(context.answer))  # without the end of turn
        begin = max(begin, min(first, end - MAX_ROWS))
        end = max(last, min(end, begin + MAX_ROWS))
        rows = slice(context.start + begin - 1, context.start + end - 1)
        return rows, first - begin, last - begin

    @torch.inference_mode()
    def _attention_to_queries(
        self, context: AnswerContext, image_tokens: Sequence[Tensor], rows: slice
    ) -> Tensor:
        """Return the attention of these rows to all queries, of shape (rows, all queries)."""
        engine = self.engine
        llm = engine.chats.llm
        with engine.lock:
            media = [medium.media for medium in context.media]
            batch = engine.batch(context.rendered, media, context.question)
            embeds = engine.chats.embed(batch, image_tokens)[:, : rows.stop]
            positions = engine.model.positions(batch)
            cache = DynamicCache(config=llm.config)

            def forward(part: slice, **options: Any) -> Any:
                position_ids = {} if positions is None else {"position_ids": positions[..., part]}
                return llm(
                    inputs_embeds=embeds[:, part], past_key_values=cache, use_cache=True,
                    logits_to_keep=1, **position_ids, **options,
                )  # fmt: skip

            if rows.start:
                forward(slice(0, rows.start))
            with eager_attention(llm):
                out = forward(slice(rows.start, rows.stop), output_attentions=True)
        queries = [i for r in context.rendered["runs"] for i in range(r.start, r.start + r.length)]
        # A sliding window returns only its last positions; earlier positions receive no attention.
        layers = [F.pad(a, (rows.stop - a.shape[-1], 0))[0, ..., queries] for a in out.attentions]
        return torch.stack([a.float().mean(dim=0).cpu() for a in layers]).mean(dim=0)


def as_media(image: Media | Tensor) -> Media:
    """Return a processed image or tensor as `Media`."""
    return media_from_tensor(image) if isinstance(image, Tensor) else image


def _excess(attention: Tensor, mean: Tensor) -> Tensor:
    """Return how far the queries' shares exceed their means, or the shares if none does.

    The latter happens when the words are the full answer.
    """
    shares = attention / attention.sum().clamp(min=1e-12)
    excess = (shares - mean / mean.sum().clamp(min=1e-12)).clamp(min=0)
    return excess if float(excess.sum()) > 1e-6 else shares


def heat_to_image(heat: Tensor, fit: Fit, height: int, width: int) -> np.ndarray:
    """Resize a map of patches to the pixels of the original image.

    Args:
        heat: (h, w), from `ImageAttention.heat`.
        fit: How the image processor made the image square.
        height: Height of the original image.
        width: Width of the original image.

    Returns:
        (height, width) float32, non-negative; 0 where the image was cropped away.
    """
    side = {"squash": None, "pad": max(height, width), "crop": min(height, width)}[fit]
    square = (height, width) if side is None else (side, side)
    resized = F.interpolate(heat[None, None].float(), square, mode="bilinear", align_corners=False)
    cell = [SMOOTHING * n / cells for n, cells in zip(square, heat.shape, strict=True)]
    pixels = ndimage.gaussian_filter(resized[0, 0].numpy(), cell, mode="nearest")
    if side is None:
        return pixels
    top, left = (side - height) // 2, (side - width) // 2
    if fit == "pad":
        return pixels[top : top + height, left : left + width]
    uncropped = np.zeros((height, width), np.float32)
    uncropped[-top : side - top, -left : side - left] = pixels
    return uncropped


def _to_grid(heat: Tensor) -> Tensor:
    """Reshape (F, L) to (F, h, w), dropping tokens before the grid such as a class token.

    Raises:
        InputError: L is not a square grid.
    """
    count = heat.shape[-1]
    for extra in range(min(9, count)):
        side = round((count - extra) ** 0.5)
        if side * side == count - extra and side > 1:
            return heat[:, extra:].reshape(len(heat), side, side)
    raise InputError(f"the {count} features do not form a grid of patches, so there is no map")
