"""Decoding steps of a Llama for many continuations of one prompt, on a CPU.

transformers' forward pass serves every architecture. For a small model with a hundred continuations
of one prompt, most of its time goes to copying the key-value cache: each continuation has its own
copy of the prompt's keys and values. `LlamaSteps` keeps one copy of these, multiplies all queries
with it at once, and stores only the new tokens for each continuation. It reads the weights of the
transformers model and computes the same logits (tested).

Notation: R continuations of which U are distinct, P prompt tokens, t new tokens before a step; H is
the model's width, V the vocabulary, K the number of key-value heads, G that of queries per
key-value head, D the width of a head.
"""

from __future__ import annotations

import copy
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
GROWTH = 32  # new tokens by which the cache grows
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
    """A Llama's forward pass for continuations of one prompt that are all equally long.

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
        self._buffer: Tensor | None = None
        self._prompt: list[tuple[Tensor, Tensor]] = []
        self._cos = self._sin = torch.empty(0)
        self._rows = self._length = 0

    @property
    def is_small(self) -> bool:
        """Whether one thread computes a step faster than several that wait for each other."""
        return sum(p.nbytes for p in self.llm.parameters()) <= SMALL_BYTES

    def another(self) -> LlamaSteps:
        """Return an object with the same weights for decoding in another thread."""
        other = copy.copy(self)
        other._buffer = None
        return other

    def start(self, embeds: Tensor, rows: int, max_new: int) -> Tensor:
        """Read a prompt and return the (1, V) logits of the next token.

        Args:
            embeds: (1, P, H), without padding.
            rows: R, the largest number of distinct continuations.
            max_new: The largest number of new tokens of a continuation.
        """
        output = self.llm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        layers = output.past_key_values.layers
        self._prompt = [(x.keys[0].transpose(-1, -2).contiguous(), x.values[0]) for x in layers]
        length = embeds.shape[1]
        positions = torch.arange(length, length + max_new)[None]
        cos, sin = self.llm.get_decoder().rotary_emb(embeds, positions)
        half = sin.shape[-1] // 2
        self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        self._rows, self._length = rows, 0
        logits: Tensor = output.logits[:, -1]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each of the first U continuations and return their (U, V) logits."""
        t, scale = self._length, self.layers[0].scaling
        cache = self._reserve(t + 1)
        cos, sin = self._cos[t], self._sin[t]
        hidden = self.llm.get_input_embeddings()(tokens)
        for layer, prompt, stored in zip(self.layers, self._prompt, cache, strict=True):
            queries, keys, values = self._project(layer, layer.norm_before(hidden), cos, sin)
            stored[0, : len(tokens), :, t], stored[1, : len(tokens), :, t] = keys, values
            seen = stored[:, : len(tokens), :, : t + 1]
            mixed = _attend(queries * scale, prompt, seen[0], seen[1])
            hidden = hidden + layer.output(mixed)
            hidden = hidden + layer.mlp(layer.norm_after(hidden))
        self._length = t + 1
        return self.head(self.norm(hidden))

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Overwrite the cached tokens of the target continuations with those of the sources."""
        if len(targets) and self._buffer is not None:
            stored = self._buffer[..., : self._length, :]
            stored[:, :, targets] = stored[:, :, sources]

    def _project(
        self, layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (U, K, G, D), keys (U, K, D) and values (U, K, D) of normalised states."""
        both = self.kv_heads * (self.groups + 1)
        projected = layer.qkv(hidden).view(len(hidden), -1, self.width)
        turned, values = projected[:, :both], projected[:, both:]
        rolled = turned.roll(self.width // 2, dims=-1)
        turned = torch.addcmul(turned * cos, rolled, sin)
        first = self.kv_heads * self.groups
        queries = turned[:, :first].unflatten(1, (self.kv_heads, self.groups))
        return queries, turned[:, first:], values

    def _reserve(self, length: int) -> Tensor:
        """Return a cache (layers, 2, R, K, T, D) with room for `length` tokens."""
        old = self._buffer
        if old is None or old.shape[2] < self._rows or old.shape[4] < length:
            shape = (len(self.layers), 2, self._rows, self.kv_heads, length + GROWTH, self.width)
            self._buffer = torch.empty(shape)
            if old is not None and self._length:
                self._buffer[..., : self._length, :] = old[..., : self._length, :]
        assert self._buffer is not None
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
