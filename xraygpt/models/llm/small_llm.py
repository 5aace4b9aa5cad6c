"""Small language models trained from scratch, LoRA, and the digest that identifies an LLM."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xraygpt.common.checks import Checks
from xraygpt.common.errors import WeightsError


@dataclass(kw_only=True)
class LoraSettings:
    """Low-rank adapters in the LLM (Hu et al. 2021), implemented by peft."""

    r: int = 8
    """Rank of the weight update."""
    alpha: int = 16
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout rate before the adapter, in [0, 1)."""
    target: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Names of the adapted linear layers."""


@dataclass(kw_only=True)
class SmallLLM:
    """The size of a Llama with random weights and a tokenizer trained on the training texts."""

    vocab_size: int = 2048
    """Vocabulary size of the byte-level BPE tokenizer; with 260, it has only single bytes and
    special tokens."""
    hidden: int = 256
    """Width of the hidden states."""
    layers: int = 6
    """Number of transformer layers."""
    heads: int = 4
    """Number of attention heads."""
    context: int = 512
    """Maximum length of a sequence in tokens, including image tokens."""
    init_std: float = 0.06
    """Standard deviation of random weights other than embeddings; tuned at hidden 128."""
    embedding_std: float = 0.2
    """Standard deviation of the token embeddings, tuned at hidden 128. Logits grow with it and with
    the square root of the width, so wider models need less. With 0.02 for both, as in large
    models, words that occur in the same contexts (left and right) soon share one embedding, and a
    short training does not learn to repeat the word in the prompt."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.above(0, "init_std", "embedding_std")
            check.at_least(1, "heads")
            ragged = self.heads > 0 and self.hidden % self.heads
            multiple = f"must be a multiple of heads ({self.heads}), got {self.hidden}"
            check.refuse(ragged, "hidden", multiple, "heads")
            few = f"must be at least 260 (bytes and special tokens), got {self.vocab_size}"
            check.refuse(self.vocab_size < 260, "vocab_size", few)


def digest(llm: Any) -> str:
    """Compute the SHA-256 of the embeddings in bfloat16, which identifies an LLM in any dtype."""
    weight = llm.get_input_embeddings().weight.detach().cpu().to(torch.bfloat16).contiguous()
    return hashlib.sha256(weight.view(torch.uint8).numpy().tobytes()).hexdigest()


def new_llm(size: SmallLLM, tokenizer: Any, seed: int) -> nn.Module:
    """Build a Llama with random weights from `seed`, without using the global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        initializer_range=size.init_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llm = LlamaForCausalLM(config)
    embeddings: Any = llm.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight.mul_(size.embedding_std / size.init_std)
    return llm


def new_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which can encode any text.

    Args:
        texts: The training texts; if there are none, tokens are single bytes.
        vocab_size: Maximum number of entries: 256 bytes, three special tokens, and merges.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def check_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Check that a tokenizer is the one that a checkpoint was trained with.

    Args:
        folder: Folder of the checkpoint's tokenizer; nothing is checked if it has none.
        tokenizer: Tokenizer trained on the current corpus.

    Raises:
        WeightsError: The tokenizers differ because the corpus has changed.
    """
    saved = folder / "tokenizer.json"
    if not saved.is_file():
        return
    if PreTrainedTokenizerFast(tokenizer_file=str(saved)).get_vocab() != tokenizer.get_vocab():
        raise WeightsError(
            f"the tokenizer in {folder} is not the one trained on this corpus, which must have "
            "changed since; train from scratch, or resume that run with its own tokenizer"
        )


def add_lora(llm: nn.Module, settings: LoraSettings) -> None:
    """Add adapters to `llm`; only these are trainable, and initially they have no effect.

    Raises:
        WeightsError: None of the named layers exists.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target,
    )
    try:
        inject_adapter_in_model(config, llm)
    except ValueError as error:
        raise WeightsError(f"model.lora.target {settings.target}: {error}") from None
    for name, parameter in llm.named_parameters():
        if "lora_" in name:  # trained weights are float32, whatever the dtype of the frozen weights
            parameter.data = parameter.data.float()


@torch.no_grad()
def merge_lora_weights(llm: nn.Module) -> None:
    """Add the adapters to the weights they adapt, rounding once, and remove them.

    Weights shared by two layers are separated if only one layer is adapted. Quantized layers keep
    their adapters.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [(n, m) for n, m in llm.named_modules() if isinstance(m, LoraLayer)]
    layer: Any
    for name, layer in adapted:
        base = layer.get_base_layer()
        if not base.weight.is_floating_point():
            continue
        weight = base.weight.float()
        for adapter in layer.active_adapters:
            weight = weight + layer.get_delta_weight(adapter).float()
        base.weight = nn.Parameter(weight.to(base.weight.dtype), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(llm.get_submodule(parent), child, base)
    head: Any = llm
    if head.get_input_embeddings().weight is not head.get_output_embeddings().weight:
        head.config.tie_word_embeddings = False  # otherwise only one of the two would be saved
