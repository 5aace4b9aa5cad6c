"""`xraygpt` whose Q-Former also reads the question, as in InstructBLIP (Dai et al. 2023).

Notation as in `qformer.py`; a question has T tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, InstructBlipQFormerConfig, InstructBlipQFormerModel

from xraygpt.common.checks import Checks
from xraygpt.common.errors import WeightsError
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.models.llm import llm_files, small_llm
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormer, QFormerConfig, network_sizes

log = logging.getLogger(__name__)


class TextQFormer(QFormer):
    """Turns patch tokens and a question into query tokens.

    Args:
        config: Size of the Q-Former.
        vocab_size: Vocabulary size of the question's tokenizer.
        sizes: The remaining arguments of `QFormer`.
    """

    reads_text = True

    def __init__(self, config: QFormerConfig, *, vocab_size: int, **sizes: Any) -> None:
        self._vocab_size = vocab_size
        super().__init__(config, **sizes)

    def make_network(self, config: QFormerConfig, vision_width: int) -> nn.Module:
        """Build the transformer that processes queries and words."""
        settings = network_sizes(config, vision_width) | {"vocab_size": self._vocab_size}
        return InstructBlipQFormerModel(InstructBlipQFormerConfig(**settings))

    def read(
        self,
        queries: Tensor,
        patches: Tensor,
        mask: Tensor | None,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Update (N, Q, K) queries from (N, L, D) tokens and (N, T) question ids with their mask.

        Without a question, the queries read the image alone.
        """
        attention_mask = None
        if text_mask is not None:
            attention_mask = torch.cat([text_mask.new_ones(queries.shape[:2]), text_mask], dim=1)
        out: Tensor = self.qformer(
            input_ids=text_ids,
            attention_mask=attention_mask,
            query_embeds=queries,
            encoder_hidden_states=patches,
            encoder_attention_mask=mask,
        ).last_hidden_state
        return out[:, : queries.shape[1]]


@registry.register_model("xraygpt_instruct", "instruct_blip")
class InstructXrayGPT(XrayGPT):
    """`xraygpt` whose image tokens depend on the question."""

    @dataclass(kw_only=True)
    class Config(XrayGPT.Config):
        """Settings of `xraygpt`, and settings for how the Q-Former reads the question."""

        qformer_tokenizer: ProjectPath | None = None
        """Folder of the Q-Former's own tokenizer (InstructBLIP: `qformer_tokenizer/`); null uses
        the LLM's, for a Q-Former trained from scratch."""
        max_question_len: int = 128
        """Maximum number of question tokens for the Q-Former, 1 to 512; the rest is cut off."""

        def __post_init__(self) -> None:
            length = self.max_question_len
            with Checks(self) as check:
                check.include(super().__post_init__)
                wrong = not 1 <= length <= 512
                check.refuse(wrong, "max_question_len", f"must be in 1..512, got {length}")

    config: Config
    reads_question = True

    def make_qformer(self, width: int, patches: int | None) -> nn.Module:
        """Build a Q-Former that also reads the question."""
        self.question_tokenizer = self._load_question_tokenizer()
        return TextQFormer(
            self.config.qformer,
            vocab_size=len(self.question_tokenizer),
            vision_width=width,
            num_patches=patches,
        )

    def _load_question_tokenizer(self) -> Any:
        folder = self.config.qformer_tokenizer
        if folder is not None and not folder.is_dir():
            raise WeightsError(f"model.qformer_tokenizer: there is no folder {folder}")
        if folder is None:
            log.info("model.qformer_tokenizer is not set: the Q-Former uses the LLM's tokenizer")
            llm = self.config.llm.source
            return (
                small_llm.new_tokenizer([], 260) if llm is None else llm_files.load_tokenizer(llm)
            )
        try:
            return AutoTokenizer.from_pretrained(folder, **llm_files.LOCAL_ONLY)
        except llm_files.LOAD_ERRORS as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"model.qformer_tokenizer: {folder} contains no tokenizer: {why}"
            ) from None

    def qformer_text(self, batch: Batch) -> dict[str, Tensor]:
        """Return (N, T) ids and their mask of the question that belongs to each image."""
        ids = batch["input_ids"]
        images = torch.tensor(images_per_row(batch, self.config.qformer.num_queries))
        tokenizer, max_length = self.question_tokenizer, self.config.max_question_len
        encoded = [
            tokenizer(question, truncation=True, max_length=max_length)["input_ids"]
            or [tokenizer.eos_token_id or 0]
            for question in batch["question"]
        ]
        width = max(map(len, encoded))
        text = torch.zeros(len(encoded), width, dtype=torch.long)
        mask = torch.zeros_like(text)
        for row, tokens in enumerate(encoded):
            text[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
        rows = torch.arange(len(encoded)).repeat_interleave(images)
        return {"text_ids": text[rows].to(ids.device), "text_mask": mask[rows].to(ids.device)}
