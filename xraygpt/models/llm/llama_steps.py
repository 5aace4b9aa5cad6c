"""Decoding steps of a Llama for many continuations of one or several prompts, on a CPU.

transformers' forward pass serves every architecture. For a small model with dozens of continuations
of one prompt, most of its time goes to copying the key-value cache: each continuation has its own
copy of the prompt's keys and values. `LlamaSteps` keeps one copy of these, multiplies all queries
with it at once, and stores only the new tokens for each continuation. Continuations of several
prompts go through the linear layers together, since reading a layer's weights takes as long as
multiplying a few dozen rows with them. It reads the weights of the transformers model and computes
the same logits (tested).

Notation: R continuations of a prompt of which U are distinct (of all prompts, ΣU), P prompt tokens,
t new tokens before a step; H is the model's width, V the vocabulary, K the number of key-value
heads, G that of queries per key-value head, D the width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODEL_TYPES = ("llama", "mistral", "qwen2")
"""Architectures that consist of the layers computed here."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position only, not on the length of the text."""
MAX_BYTES = 1e9  # of weights that are copied once for each batch
SMALL_BYTES = 64e6  # of weights up to which a step takes only milliseconds
CACHE_BYTES = 1e9  # of keys and values of prompts that are continued together
MIN_ROWS = 16  # above which rows of a matrix product do not depend on their number (measured: 12)
GROWTH = 128  # new tokens by which the cache grows; unused memory costs nothing on most systems
_PARTS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def has_llama_steps(llm: Any) -> bool:
    """Return whether `LlamaSteps` computes the same as this LLM; otherwise, use the LLM itself.

    It does for a float32 model on the CPU whose layers are those of a Llama: plain linear layers
    without adapters or hooks, SiLU, a rotary embedding in `ROPE_TYPES` and no sliding window.
    """
    config = getattr(llm, "config", None)
    if config is None or getattr(config, "model_type", None) not in MODEL_TYPES:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        return False
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.hidden_act != "silu" or types != {"full_attention"} or _has_window(config):
        return False
    return _is_plain(llm)


def _has_window(config: Any) -> bool:
    uses = getattr(config, "use_sliding_window", True)  # Qwen2 has a size even if it uses no window
    return bool(getattr(config, "sliding_window", None) and uses)


def _is_plain(llm: Any) -> bool:
    """Return whether the modules are the expected ones, in float32 and on the CPU."""
    modules = list(llm.modules())
    if any(m._forward_hooks or m._forward_pre_hooks for m in modules):
        return False
    parameters = list(llm.parameters())
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters):
        return False
    layers = llm.get_decoder().layers
    linears = [
        getattr(getattr(layer, part, None), name, None)
        for layer in layers
        for part, names in _PARTS.items()
        for name in names
    ]
    copied = sum(p.nbytes for layer in layers for p in layer.parameters())
    return copied <= MAX_BYTES and all(type(linear) is nn.Linear for linear in linears)


class LlamaSteps:
    """A Llama's forward pass for continuations of prompts that are all equally long.

    Args:
        llm: A model for which `has_llama_steps` holds. Its weights are read now: build a new object
            after training it further.
    """

    def __init__(self, llm: Any) -> None:
        self.llm, config = llm, llm.config
        decoder = llm.get_decoder()
        heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.groups = heads // self.kv_heads
        self.layers = [_Layer(layer) for layer in decoder.layers]
        self.norm, self.head = decoder.norm, _Product([llm.lm_head])

    @property
    def is_small(self) -> bool:
        """Whether one thread computes a step faster than several that wait for each other."""
        return sum(p.nbytes for p in self.llm.parameters()) <= SMALL_BYTES

    def prompts_at_once(self, rows: int, max_new: int) -> int:
        """Return how many prompts can be continued together within `CACHE_BYTES`, at least 1.

        Args:
            rows: R, the number of continuations of each prompt.
            max_new: The largest number of new tokens.
        """
        values = 2 * len(self.layers) * self.kv_heads * self.width * rows * max_new
        return max(1, int(CACHE_BYTES // (4 * values)))

    def start(self, embeds: Tensor, rows: int, max_new: int) -> tuple[Continuations, Tensor]:
        """Read a prompt, and return its continuations and the (1, V) logits of the next token.

        Args:
            embeds: (1, P, H), without padding.
            rows: R, the largest number of distinct continuations.
            max_new: The largest number of new tokens of a continuation.
        """
        output = self.llm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        layers = output.past_key_values.layers
        prompt = [(x.keys[0].transpose(-1, -2).contiguous(), x.values[0]) for x in layers]
        length = embeds.shape[1]
        positions = torch.arange(length, length + max_new)[None]
        cos, sin = self.llm.get_decoder().rotary_emb(embeds, positions)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        return Continuations(prompt, cos[0], sin, rows), output.logits[:, -1]

    def step(self, tokens: Sequence[Tensor], continuations: Sequence[Continuations]) -> Tensor:
        """Append one token to the first U continuations of each prompt.

        Args:
            tokens: (U,) for each prompt.
            continuations: Those of each prompt.

        Returns:
            (ΣU, V) logits. Those of a prompt do not depend on the other prompts, not even through
            rounding.
        """
        counts = [len(part) for part in tokens]
        total = sum(counts)
        # With fewer rows, a product's rounding depends on their number.
        padding = torch.zeros(max(0, MIN_ROWS - total), dtype=torch.long)
        hidden = self.llm.get_input_embeddings()(torch.cat([*tokens, padding]))
        turns = [each.turn for each in continuations]
        repeats = torch.tensor(counts)
        cos, sin = (
            torch.cat(x).repeat_interleave(repeats, dim=0) for x in zip(*turns, strict=True)
        )
        mixed = torch.zeros(len(hidden), self.kv_heads * self.groups * self.width)
        outs = mixed[:total].split(counts)
        for i, layer in enumerate(self.layers):
            projected = layer.qkv(layer.norm_before(hidden))[:total]
            queries, keys, values = self._turn(projected, cos, sin, layer.scaling)
            parts = zip(
                queries.split(counts), keys.split(counts), values.split(counts), strict=True
            )
            for each, out, part in zip(continuations, outs, parts, strict=True):
                out.copy_(each.attend(i, *part))
            hidden = hidden + layer.output(mixed)
            hidden = hidden + layer.mlp(layer.norm_after(hidden))
        for each in continuations:
            each.length += 1
        return self.head(self.norm(hidden))[:total]

    def _turn(
        self, projected: Tensor, cos: Tensor, sin: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turn queries and keys to their positions.

        Args:
            projected: (ΣU, K · (G + 2) · D) queries, keys and values.
            cos: (ΣU, 1, D).
            sin: (ΣU, 1, D), the first half negated.
            scale: Factor of the queries.

        Returns:
            Queries (ΣU, K, G, D), keys (ΣU, K, D) and values (ΣU, K, D).
        """
        first, both = self.kv_heads * self.groups, self.kv_heads * (self.groups + 1)
        heads = projected.view(len(projected), -1, self.width)
        turned, values = heads[:, :both], heads[:, both:]
        rolled = turned.roll(self.width // 2, dims=-1)
        turned = torch.addcmul(turned * cos, rolled, sin)
        queries = (turned[:, :first] * scale).unflatten(1, (self.kv_heads, self.groups))
        return queries, turned[:, first:], values


class Continuations:
    """The cached keys and values of one prompt and its continuations.

    Args:
        prompt: Keys (K, D, P) and values (K, P, D) of the prompt in each layer.
        cos: (T, D), for the positions of the new tokens.
        sin: (T, D), the first half negated.
        rows: R, the largest number of distinct continuations.

    Attributes:
        length: t, the number of new tokens.
    """

    def __init__(
        self, prompt: list[tuple[Tensor, Tensor]], cos: Tensor, sin: Tensor, rows: int
    ) -> None:
        self.length, self._prompt, self._rows = 0, prompt, rows
        self._cos, self._sin = cos[:, None], sin[:, None]
        self._buffer = torch.empty(0)

    @property
    def turn(self) -> tuple[Tensor, Tensor]:
        """(1, 1, D) cosines and sines of the next token's position."""
        next_token = slice(self.length, self.length + 1)
        return self._cos[next_token], self._sin[next_token]

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Overwrite the cached tokens of the target continuations with those of the sources."""
        if len(targets) and self.length:
            stored = self._buffer[..., : self.length, :]
            stored[:, :, targets] = stored[:, :, sources]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store the next token's keys and values, and attend to all tokens up to it.

        Args:
            layer: Index of the layer.
            queries: (U, K, G, D) of the first U continuations, scaled.
            keys: (U, K, D).
            values: (U, K, D).

        Returns:
            (U, K · G · D), the heads' outputs side by side.
        """
        count, t = len(queries), self.length
        stored = self._reserve(keys)[layer, :, :count, :, : t + 1]
        stored[0, :, :, t], stored[1, :, :, t] = keys, values
        return _attend(queries, self._prompt[layer], stored[0], stored[1])

    def _reserve(self, keys: Tensor) -> Tensor:
        """Return a cache (layers, 2, R, K, T, D) with room for one more token."""
        old = self._buffer
        if old.numel() and self.length < old.shape[4]:
            return old
        length = min(self.length + GROWTH, len(self._cos))
        _, heads, width = keys.shape
        self._buffer = torch.empty(len(self._prompt), 2, self._rows, heads, length, width)
        if self.length:
            self._buffer[..., : self.length, :] = old
        return self._buffer


class _Layer:
    """The weights of one layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_before, self.norm_after = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = _Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = _Product([attention.o_proj])
        self.gate_up = _Product([mlp.gate_proj, mlp.up_proj])
        self.down = _Product([mlp.down_proj])
        self.scaling = attention.scaling

    def mlp(self, hidden: Tensor) -> Tensor:
        """Compute the MLP of (U, H) normalised states."""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(F.silu(gate).mul_(up))


class _Product:
    """One or several linear layers with the same input, as one product.

    The copied weights are transposed, which is a tenth faster than torch's layout on a CPU.
    """

    def __init__(self, linears: list[nn.Linear]) -> None:
        self.weight = torch.cat([x.weight.detach() for x in linears]).t().contiguous()
        biases = [
            torch.zeros(x.out_features) if x.bias is None else x.bias.detach() for x in linears
        ]
        self.bias = None if all(x.bias is None for x in linears) else torch.cat(biases)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Multiply (U, H) states with all weights and concatenate the results."""
        product = hidden @ self.weight
        return product if self.bias is None else product.add_(self.bias)


def _attend(queries: Tensor, prompt: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> Tensor:
    """Attend to the prompt, which all continuations share, and to each one's own tokens.

    Args:
        queries: (U, K, G, D), scaled.
        prompt: Keys (K, D, P) and values (K, P, D) of the prompt.
        keys: (U, K, t, D).
        values: (U, K, t, D).

    Returns:
        (U, K · G · D), the heads' outputs side by side.
    """
    count, heads, groups, width = queries.shape
    prompt_keys, prompt_values = prompt
    length = prompt_keys.shape[-1]
    shared = queries.transpose(0, 1).reshape(heads, count * groups, width) @ prompt_keys
    scores = queries.new_empty(count, heads, groups, length + keys.shape[2])
    scores[..., :length] = shared.view(heads, count, groups, length).transpose(0, 1)
    scores[..., length:] = queries @ keys.transpose(-1, -2)
    weights = scores.softmax(dim=-1)
    shared = weights[..., :length].transpose(0, 1).reshape(heads, count * groups, length)
    mixed = (shared @ prompt_values).view(heads, count, groups, width).transpose(0, 1)
    return (mixed + weights[..., length:] @ values).reshape(count, heads * groups * width)
