"""A key-value cache that is not copied for every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Cached keys and values in buffers with spare capacity.

    The parent class copies the whole cache for every token, this class only every `spare_tokens`
    tokens.
    """

    spare_tokens = 64

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Append (R, heads, T, D) keys and values, and return all that are cached."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < after:
            old = (self.keys, self.values) if before else (None, None)
            self._buffers = (
                self._allocate(old[0], key_states, after),
                self._allocate(old[1], value_states, after),
            )
        keys, values = self._buffers
        keys[..., before:after, :] = key_states
        values[..., before:after, :] = value_states
        self.keys, self.values = keys[..., :after, :], values[..., :after, :]
        return self.keys, self.values

    def _allocate(self, old: Tensor | None, new: Tensor, length: int) -> Tensor:
        buffer = new.new_empty((*new.shape[:-2], length + self.spare_tokens, new.shape[-1]))
        if old is not None:
            buffer[..., : old.shape[-2], :] = old
        return buffer

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, as the parent class does."""
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select rows, as the parent class does."""
        super().batch_select_indices(indices)
        self._buffers = None


def preallocated_cache(llm: Any) -> DynamicCache:
    """Build an empty cache for an LLM; layers with a sliding window keep transformers' class."""
    cache = DynamicCache(config=llm.config)
    cache.layers = [PreallocatedLayer() if type(x) is DynamicLayer else x for x in cache.layers]
    return cache
