"""A decoder trained from scratch, whose size follows from one number.

The architecture is that of nanochat (Karpathy 2025, https://github.com/karpathy/nanochat), which
transformers implements: rotary positions, normalised queries and keys, squared ReLU, no biases, and
logits bounded by 15 · tanh(x / 15).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import NanoChatConfig, NanoChatForCausalLM

from xraygpt.common.checks import Checks
from xraygpt.models.llm import attention
from xraygpt.models.llm.dropout import add_dropout
from xraygpt.models.prefix_lm.fast_layers import use_fast_layers

WIDTH_PER_LAYER = 64
HEAD_WIDTH = 128  # at most
TUNED_WIDTH = 768  # at which nanochat's learning rates were tuned
# Learning rates of token embeddings and of the output layer, relative to that of hidden matrices
# (0.2 and 0.004 against 0.02). They fall with the square root of the width.
EMBEDDING_LR, HEAD_LR = 10.0, 0.2


@dataclass(kw_only=True)
class DecoderSize:
    """Size of the decoder and of its vocabulary; `depth` sets what is null."""

    depth: int = 8
    """Number of layers. 8 gives 27 million parameters, as in echovlm."""
    width: int | None = None
    """Width of the hidden states; null means 64 · depth."""
    heads: int | None = None
    """Number of attention heads; null means the fewest of width 128 or less."""
    context: int = 1024
    """Maximum length of a sequence in tokens, including the study's embeddings."""
    vocab_size: int = 2000
    """Vocabulary size of the tokenizer, which is trained on the training reports: 256 bytes,
    special tokens, and merges."""
    dropout: float = 0.0
    """Dropout rate of the embeddings and of the output of each attention and MLP, in [0, 1). A few
    thousand reports need about 0.2, a million none."""
    rope_dtype: str = "float32"
    """Precision of the cosines and sines of positions; echovlm rounds them to `bfloat16`."""

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return self.width or WIDTH_PER_LAYER * self.depth

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return self.heads or math.ceil(self.hidden / HEAD_WIDTH)

    @property
    def num_parameters(self) -> int:
        """Number of weights: 12 · width² for each layer, and two tables of the vocabulary."""
        return 12 * self.depth * self.hidden**2 + 2 * self.vocab_size * self.hidden

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "depth", "width", "heads")
            check.at_least(2, "context")
            check.fraction_below_one("dropout")
            few = f"must be at least 272 (bytes and special tokens), got {self.vocab_size}"
            check.refuse(self.vocab_size < 272, "vocab_size", few)
            wrong = self.rope_dtype not in ("float32", "bfloat16")
            check.refuse(wrong, "rope_dtype", "must be float32 or bfloat16")
            if not check.problems:
                odd = self.hidden % (2 * self.num_heads)
                twice = f"must be a multiple of twice the heads ({self.num_heads})"
                check.refuse(odd, "width", f"{twice}, got {self.hidden}", "heads")


def new_decoder(size: DecoderSize, tokenizer: Any, seed: int) -> NanoChatForCausalLM:
    """Build a decoder with random weights from `seed`, without using the global generator."""
    config = NanoChatConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        max_position_embeddings=size.context,
        rms_norm_eps=torch.finfo(torch.float32).eps,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config._attn_implementation = attention.NAME
        decoder = NanoChatForCausalLM(config)
        _initialize(decoder)
    use_fast_layers(decoder)
    add_dropout(decoder, size.dropout)
    if size.rope_dtype == "bfloat16":
        round_positions(decoder)
    return decoder


@torch.no_grad()
def _initialize(decoder: Any) -> None:
    """Set random weights: each layer's output is 0 at first, and so are the logits.

    Other matrices keep the size of their input (Yang et al. 2023, arXiv:2310.17813).
    """
    nn.init.normal_(decoder.model.embed_tokens.weight)
    for name, module in decoder.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name.endswith(("o_proj", "fc2", "lm_head")):
            nn.init.zeros_(module.weight)
            continue
        fan_out, fan_in = module.weight.shape
        nn.init.normal_(module.weight, std=min(1.0, math.sqrt(fan_out / fan_in)) / fan_in**0.5)


def round_positions(decoder: Any) -> None:
    """Round the cosines and sines of positions to bfloat16, as echovlm's table is."""

    def rounded(_: nn.Module, __: Any, output: Any) -> Any:
        return tuple(x.bfloat16().to(x.dtype) for x in output)

    decoder.model.rotary_emb.register_forward_hook(rounded)
