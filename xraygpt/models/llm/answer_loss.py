"""The loss of a causal LLM without what nobody asked for: no padding, no logits off the answers.

Rows of a batch are laid one behind the other in fewer, fuller ones. A token sees its own row alone:
positions begin anew with each, and transformers builds the block-diagonal mask from that.
FlashAttention takes no mask but finds the texts of a single row by their positions: there all lie
in one. The loss is that of the padded batch.

Notation: B rows of T tokens, S of them real; packed, R rows of C; N answer tokens; H the LLM's
width, V its vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xraygpt.models.base import Output
from xraygpt.prompting.renderer import IGNORE_INDEX

# Tokens of a packed row. Attention costs more the longer it is, as it also computes what the mask
# hides; shorter rows are harder to fill.
ROW = 256


@dataclass(frozen=True)
class Packed:
    """Where the real tokens of a padded batch go."""

    source: Tensor  # (S,) int64, places in the flattened (B * T)
    target: Tensor  # (S,) int64, places in the flattened (R * C)
    positions: Tensor  # (R, C) int64, from 0 in each row of the batch; what is left over likewise
    shape: tuple[int, int]  # R, C

    def lay_positions(self, padded: Tensor | None) -> Tensor:
        """Position ids of the packed rows: `positions`, or those of a model, laid likewise.

        Args:
            padded: (B, T) or (A, B, T); None counts tokens.

        Returns:
            (R, C); or (1 + A, R, C), the first of which counts the tokens of each text.
        """
        if padded is None:
            return self.positions
        axes = padded.unsqueeze(-1) if padded.dim() == 2 else padded.permute(1, 2, 0)
        laid = self.lay(axes).permute(2, 0, 1)
        return laid[0] if padded.dim() == 2 else torch.cat([self.positions[None], laid])

    def lay(self, padded: Tensor) -> Tensor:
        """(B, T, H) -> (R, C, H), 0 where nothing is."""
        laid = padded.new_zeros(self.shape[0] * self.shape[1], padded.shape[-1])
        laid = laid.index_copy(0, self.target, padded.flatten(0, 1)[self.source])
        return laid.view(*self.shape, -1)


def packed(mask: Tensor, least: int = ROW) -> Packed:
    """First-fit decreasing (Johnson 1973): each row into the first that has room for it.

    Args:
        mask: (B, T) 1 on tokens, wherever the padding is.
        least: Capacity of a packed row, or the longest row's if that is longer.
    """
    lengths = mask.sum(dim=1).tolist()
    capacity = max([least, *lengths])
    start, rows = [0] * len(lengths), [0] * len(lengths)
    filled: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, used in enumerate(filled) if used + lengths[i] <= capacity), None)
        if row is None:
            row = len(filled)
            filled.append(0)
        start[i], rows[i] = filled[row], row
        filled[row] += lengths[i]
    width = max(filled, default=0)
    device = mask.device
    source = mask.flatten().nonzero().squeeze(1)
    owner = source // mask.shape[1]
    place = (mask.cumsum(dim=1) - 1).flatten()[source]  # in its own row
    first = torch.tensor([r * width + s for r, s in zip(rows, start, strict=True)], device=device)
    target = first[owner] + place
    # What is left over at a row's end is a text of its own: -1 marks it until all others stand.
    positions = torch.full((len(filled) * width,), -1, dtype=torch.long, device=device)
    positions[target] = place
    positions = positions.view(len(filled), width)
    rest = torch.tensor(filled, device=device)[:, None]
    tail = torch.arange(width, device=device)[None] - rest
    return Packed(source, target, torch.where(positions < 0, tail, positions), (len(filled), width))


def answer_loss(
    llm: Any,
    embeds: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    return_logits: bool = False,
    positions: Tensor | None = None,
) -> Output:
    """Cross-entropy of the labelled tokens, in float32.

    Args:
        llm: A transformers causal LM.
        embeds: (B, T, H).
        attention_mask: (B, T) int64.
        labels: (B, T) int64, not shifted; IGNORE_INDEX carries no loss.
        return_logits: Compute all (B, T, V) logits and return them; nothing is packed then.
        positions: (B, T) or (A, B, T) position ids, see `BaseModel.positions`; None counts tokens.
    """
    shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # what t should say
    target = (shifted != IGNORE_INDEX) & (attention_mask > 0)  # padding says nothing
    wanted = target.flatten().nonzero().squeeze(1)
    if return_logits:
        logits: Tensor = llm(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            use_cache=False,
            **_given(positions),
        ).logits
        scored = logits.flatten(0, 1)[wanted]
    else:
        scored = _logits_at(llm, embeds, attention_mask, wanted, positions)
    scored = scored.float().to(labels.device)
    each = functional.cross_entropy(scored, shifted.flatten()[wanted], reduction="none")
    row_loss = each.new_zeros(len(labels)).index_add(0, wanted // labels.shape[1], each)
    return Output(
        loss=row_loss.sum(),
        row_loss=row_loss.detach(),
        num_targets=target.sum(dim=1),
        logits=logits if return_logits else None,
    )


def _given(positions: Tensor | None) -> dict[str, Tensor]:
    return {} if positions is None else {"position_ids": positions}


def _logits_at(
    llm: Any, embeds: Tensor, mask: Tensor, wanted: Tensor, positions: Tensor | None
) -> Tensor:
    """(N, V) at N places of the flattened (B * T)."""
    pack = packed(mask, int(mask.sum()) if _wants_one_row(llm) else ROW)
    if pack.shape[0] * pack.shape[1] >= mask.numel():  # nothing to gain
        with _head_reads(llm, wanted):
            out = llm(
                inputs_embeds=embeds, attention_mask=mask, use_cache=False, **_given(positions)
            )
        return out.logits[0]
    where = torch.full((mask.numel(),), -1, dtype=torch.long, device=mask.device)
    where[pack.source] = pack.target
    with _head_reads(llm, where[wanted]):
        out = llm(
            inputs_embeds=pack.lay(embeds),
            position_ids=pack.lay_positions(positions),
            use_cache=False,
        )
    logits: Tensor = out.logits[0]
    return logits


def _wants_one_row(llm: Any) -> bool:
    return str(llm.config._attn_implementation).startswith("flash")


@contextlib.contextmanager
def _head_reads(llm: Any, places: Tensor) -> Iterator[None]:
    """Let the output layer of an LLM see these places of the flattened hidden states alone."""

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0].flatten(0, 1)
        return (hidden[None, places.to(hidden.device)], *inputs[1:])

    handle = llm.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
