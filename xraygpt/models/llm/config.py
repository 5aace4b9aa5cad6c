"""The `llm` section of a model's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import ProjectName
from xraygpt.common.requirements import Missing, missing_llm
from xraygpt.models.llm import llm_files
from xraygpt.models.llm.llm_files import Attention, Bits, Dtype
from xraygpt.models.llm.small_llm import LoraSettings, SmallLLM


@dataclass(kw_only=True)
class LLMConfig:
    """The language model that reads image tokens."""

    source: ProjectName | None = None
    """A transformers folder, a `.gguf` file, `package:<name>`, or a run of the task
    `language_modeling`; null creates a random model of size `size`, for tests."""
    size: SmallLLM = field(default_factory=SmallLLM)
    """Size of the random LLM; has no effect if `source` is set."""
    dtype: Dtype = "auto"
    """Dtype of the LLM's weights; `auto` is bfloat16 with CUDA and float32 without."""
    bits: Bits | None = None
    """Quantize the frozen LLM to 8 or 4 bits with bitsandbytes; null disables quantization."""
    device_map: str | None = None
    """`auto` spreads the LLM's layers over all GPUs, then CPU memory; null uses one device."""
    attention: Attention | None = None
    """Attention kernels; null uses `sdpa` if the model supports it."""
    low_resource: bool = False
    """XrayGPT's name for `bits: 8`."""
    lora: LoraSettings | None = None
    """Low-rank adapters; null adds none."""
    freeze: bool = True
    """Train none of the LLM's weights except LoRA's."""
    grad_checkpoint: bool = False
    """Recompute activations in the backward pass, to save memory."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            why = "quantized weights cannot be trained"
            check.needs("freeze", "bits", "low_resource", why=why, key="freeze_llm")
            why = "an LLM is trained either with LoRA or in full"
            check.needs("freeze", "lora", why=why, key="freeze_llm")

    def load(self) -> tuple[Any, Any]:
        """Load the LLM at `source` and its tokenizer as these settings say, without adapters.

        Raises:
            WeightsError: There is no LLM, or it cannot be loaded.
        """
        assert self.source is not None
        dtype = self.dtype
        if dtype == "auto" and not self.freeze:
            dtype = "float32"  # AdamW's small updates would vanish in bfloat16 weights
        return llm_files.load_llm(
            self.source,
            dtype,
            bits=self.bits or (8 if self.low_resource else None),
            device_map=self.device_map,
            attention=self.attention,
        )

    def missing(self, where: str) -> list[Missing]:
        """List the source if there is no LLM."""
        return missing_llm(f"{where}.source", self.source)
