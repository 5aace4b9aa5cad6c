"""Loss of a causal LLM, computed without padding and without logits outside the answers.

The rows of a batch are packed into fewer, longer rows. A token attends to its own row only:
positions restart with each row, and transformers derives the block-diagonal mask from them.
FlashAttention accepts no mask and finds the texts by their positions in a single packed row. The
loss equals that of the padded batch.

Notation: B rows of T tokens, S of which are not padding; after packing, R rows of C tokens; N
target tokens; A position axes; H is the LLM's width and V the size of its vocabulary.
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

# Capacity of a packed row in tokens. Attention costs more in longer rows because masked pairs are
# computed too, whereas shorter rows are harder to fill.
ROW_CAPACITY = 256


@dataclass(frozen=True)
class PackedLayout:
    """Where each token of a padded batch is in the packed rows."""

    source: Tensor  # (S,) int64, indices into the flattened (B * T)
    target: Tensor  # (S,) int64, indices into the flattened (R * C)
    positions: Tensor  # (R, C) int64, counted from 0 in each row of the batch and in unused space
    shape: tuple[int, int]  # R, C

    def pack_positions(self, padded: Tensor | None) -> Tensor:
        """Return the position ids of the packed rows.

        Args:
            padded: (B, T) or (A, B, T) position ids; None numbers the tokens.

        Returns:
            Ids of shape (R, C), or (1 + A, R, C) with an additional first axis that numbers the
            tokens of each text.
        """
        if padded is None:
            return self.positions
        axes = padded.unsqueeze(-1) if padded.dim() == 2 else padded.permute(1, 2, 0)
        packed = self.pack(axes).permute(2, 0, 1)
        return packed[0] if padded.dim() == 2 else torch.cat([self.positions[None], packed])

    def pack(self, padded: Tensor) -> Tensor:
        """Pack a (B, T, H) tensor into shape (R, C, H), with zeros in unused space."""
        packed = padded.new_zeros(self.shape[0] * self.shape[1], padded.shape[-1])
        packed = packed.index_copy(0, self.target, padded.flatten(0, 1)[self.source])
        return packed.view(*self.shape, -1)


def plan_packing(mask: Tensor, min_capacity: int = ROW_CAPACITY) -> PackedLayout:
    """Assign each row to the first packed row with room for it, longest first (Johnson 1973).

    Args:
        mask: (B, T), 1 for tokens; padding may be anywhere.
        min_capacity: Capacity of a packed row, unless the longest row is longer.
    """
    lengths = mask.sum(dim=1).tolist()
    capacity = max([min_capacity, *lengths])
    start, rows = [0] * len(lengths), [0] * len(lengths)
    used: list[int] = []  # tokens in each packed row
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, n in enumerate(used) if n + lengths[i] <= capacity), None)
        if row is None:
            row = len(used)
            used.append(0)
        start[i], rows[i] = used[row], row
        used[row] += lengths[i]
    width = max(used, default=0)
    device = mask.device
    source = mask.flatten().nonzero().squeeze(1)
    owner = source // mask.shape[1]
    index = (mask.cumsum(dim=1) - 1).flatten()[source]  # within its own row
    first = torch.tensor([r * width + s for r, s in zip(rows, start, strict=True)], device=device)
    target = first[owner] + index
    # Unused space at the end of a row counts as a separate text; -1 marks it at first.
    positions = torch.full((len(used) * width,), -1, dtype=torch.long, device=device)
    positions[target] = index
    positions = positions.view(len(used), width)
    tail = torch.arange(width, device=device)[None] - torch.tensor(used, device=device)[:, None]
    positions = torch.where(positions < 0, tail, positions)
    return PackedLayout(source, target, positions, (len(used), width))


def answer_loss(
    llm: Any,
    embeds: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    return_logits: bool = False,
    positions: Tensor | None = None,
    token_bytes: Tensor | None = None,
) -> Output:
    """Compute the cross-entropy of the labelled tokens in float32.

    Args:
        llm: A transformers causal LM.
        embeds: (B, T, H) embedded tokens.
        attention_mask: (B, T) int64, 1 for tokens.
        labels: (B, T) int64, not shifted; IGNORE_INDEX excludes a token from the loss.
        return_logits: Compute and return all (B, T, V) logits, without packing.
        positions: (B, T) or (A, B, T) position ids; None numbers the tokens.
        token_bytes: (V,) bytes that each token stands for, to fill in `Output.num_bytes`.
    """
    shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # next label of each token
    is_target = (shifted != IGNORE_INDEX) & (attention_mask > 0)
    targets = is_target.flatten().nonzero().squeeze(1)
    logits: Tensor | None = None
    if return_logits:
        logits = llm(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            use_cache=False,
            **_position_ids(positions),
        ).logits
        target_logits = logits.flatten(0, 1)[targets]
    else:
        target_logits = _logits_at(llm, embeds, attention_mask, targets, positions)
    target_logits = target_logits.float().to(labels.device)
    loss = functional.cross_entropy(target_logits, shifted.flatten()[targets], reduction="none")
    row = targets // labels.shape[1]
    row_loss = loss.new_zeros(len(labels)).index_add(0, row, loss)
    output = Output(
        loss=row_loss.sum(),
        row_loss=row_loss.detach(),
        num_targets=is_target.sum(dim=1),
        logits=logits,
    )
    if token_bytes is not None:
        counts = token_bytes.to(labels.device)[shifted.flatten()[targets]]
        output.num_bytes = counts.new_zeros(len(labels)).index_add(0, row, counts)
        of_text = loss.detach() * (counts > 0)
        output.byte_loss = of_text.new_zeros(len(labels)).index_add(0, row, of_text)
    return output


def _position_ids(positions: Tensor | None) -> dict[str, Tensor]:
    return {} if positions is None else {"position_ids": positions}


def _logits_at(
    llm: Any, embeds: Tensor, mask: Tensor, targets: Tensor, positions: Tensor | None
) -> Tensor:
    """Compute the (N, V) logits at N indices into the flattened (B * T) tokens."""
    layout = plan_packing(mask, int(mask.sum()) if _needs_single_row(llm) else ROW_CAPACITY)
    logits: Tensor
    if layout.shape[0] * layout.shape[1] >= mask.numel():  # packing would save nothing
        with _output_layer_at(llm, targets):
            logits = llm(
                inputs_embeds=embeds,
                attention_mask=mask,
                use_cache=False,
                **_position_ids(positions),
            ).logits
        return logits[0]
    packed_index = torch.full((mask.numel(),), -1, dtype=torch.long, device=mask.device)
    packed_index[layout.source] = layout.target
    with _output_layer_at(llm, packed_index[targets]):
        logits = llm(
            inputs_embeds=layout.pack(embeds),
            position_ids=layout.pack_positions(positions),
            use_cache=False,
        ).logits
    return logits[0]


def _needs_single_row(llm: Any) -> bool:
    return str(llm.config._attn_implementation).startswith("flash")


@contextlib.contextmanager
def _output_layer_at(llm: Any, index: Tensor) -> Iterator[None]:
    """Apply an LLM's output layer only at these indices of the flattened hidden states.

    The last layer's feed-forward network is applied only there, too, since nothing reads what it
    computes elsewhere.
    """

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0].flatten(0, 1)
        return (hidden[None, index.to(hidden.device)], *inputs[1:])

    handle = llm.get_output_embeddings().register_forward_pre_hook(select)
    try:
        with _last_mlp_at(llm, index):
            yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _last_mlp_at(llm: Any, index: Tensor) -> Iterator[None]:
    """Apply the last layer's feed-forward network only at these indices; elsewhere it adds 0."""
    layers: Any = getattr(llm.get_decoder(), "layers", None)
    mlp = None if layers is None else getattr(layers[-1], "mlp", None)
    if mlp is None or not hasattr(mlp, "down_proj") or _is_compiled(layers[-1]):
        yield
        return
    set_before, compute = vars(mlp).get("forward"), mlp.forward

    def forward(hidden: Tensor) -> Tensor:
        flat, at = hidden.flatten(0, 1), index.to(hidden.device)
        computed = compute(flat[None, at])[0]
        return torch.zeros_like(flat).index_copy(0, at, computed).view_as(hidden)

    mlp.forward = forward
    try:
        yield
    finally:
        del mlp.forward
        if set_before is not None:
            mlp.forward = set_before


def _is_compiled(layer: nn.Module) -> bool:
    return any(getattr(m, "_compiled_call_impl", None) is not None for m in layer.modules())
