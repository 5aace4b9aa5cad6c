"""`xraygpt` whose Q-Former reads the question too, as InstructBLIP does (Dai et al. 2023).

Notation as in `qformer.py`; T tokens of a question.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, InstructBlipQFormerConfig, InstructBlipQFormerModel

from xraygpt.common.checks import Checks
from xraygpt.common.errors import WeightsError
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.models.llm import llm_files
from xraygpt.models.llm import small_llm as language
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormer, QFormerConfig, sizes


class TextQFormer(QFormer):
    """Patch tokens and a question -> query tokens.

    Args:
        vocabulary: Entries of the question's tokenizer.
        sizes: As `QFormer`'s.
    """

    reads_text = True

    def __init__(self, config: QFormerConfig, *, vocabulary: int, **sizes: Any) -> None:
        self._vocabulary = vocabulary
        super().__init__(config, **sizes)

    def make_network(self, config: QFormerConfig, vision_width: int) -> nn.Module:
        """Transformers' network that queries and words go through."""
        settings = sizes(config, vision_width) | {"vocab_size": self._vocabulary}
        return InstructBlipQFormerModel(InstructBlipQFormerConfig(**settings))

    def read(
        self,
        queries: Tensor,
        patches: Tensor,
        mask: Tensor | None,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """(N, Q, K) queries, (N, L, D) tokens, (N, T) ids of questions and their mask -> (N, Q, K).

        Without a question the queries read the image alone.
        """
        both = None
        if text_mask is not None:
            both = torch.cat([text_mask.new_ones(queries.shape[:2]), text_mask], dim=1)
        out: Tensor = self.qformer(
            input_ids=text_ids,
            attention_mask=both,
            query_embeds=queries,
            encoder_hidden_states=patches,
            encoder_attention_mask=mask,
        ).last_hidden_state
        return out[:, : queries.shape[1]]


log = logging.getLogger(__name__)


@registry.register_model("xraygpt_instruct", "instruct_blip")
class InstructXrayGPT(XrayGPT):
    """`xraygpt` whose image tokens depend on the question."""

    @dataclass(kw_only=True)
    class Config(XrayGPT.Config):
        """Settings of `xraygpt`, and of the question's way into the Q-Former."""

        qformer_tokenizer: Path | None = None
        """Folder of the tokenizer that the Q-Former knows (InstructBLIP's: `qformer_tokenizer/`);
        null takes the LLM's, for a Q-Former from scratch."""
        max_question_len: int = 128
        """Most tokens of a question that the Q-Former reads; the rest is cut off."""

        def __post_init__(self) -> None:
            length = self.max_question_len
            with Checks(self) as check:
                check.include(super().__post_init__)
                wrong = not 1 <= length <= 512
                check.refuse(wrong, "max_question_len", f"must be in 1..512, got {length}")

    config: Config
    reads_question = True

    def make_qformer(self, width: int, patches: int | None) -> nn.Module:
        """A Q-Former that reads the question too."""
        self.reader = self._question_tokenizer()
        return TextQFormer(
            self.config.qformer,
            vocabulary=len(self.reader),
            vision_width=width,
            num_patches=patches,
            num_query_token=self.config.num_query_token,
        )

    def _question_tokenizer(self) -> Any:
        folder = self.config.qformer_tokenizer
        if folder is not None and not folder.is_dir():
            raise WeightsError(f"model.qformer_tokenizer: there is no folder {folder}")
        if folder is None:
            log.info("model.qformer_tokenizer is not set: the Q-Former reads the LLM's tokens")
            llm = self.config.llama_model
            return language.new_tokenizer([], 260) if llm is None else llm_files.load_tokenizer(llm)
        try:
            return AutoTokenizer.from_pretrained(folder, **llm_files.LOCAL_ONLY)
        except llm_files.LOAD_ERRORS as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"model.qformer_tokenizer: {folder} holds no tokenizer: {why}"
            ) from None

    def reading(self, batch: Batch) -> dict[str, Tensor]:
        """(N, T) ids and mask of the question each image of the batch belongs to."""
        ids = batch["input_ids"]
        images = torch.tensor(images_per_row(batch, self.config.num_query_token))
        encoded = [
            self.reader(q, truncation=True, max_length=self.config.max_question_len)["input_ids"]
            or [self.reader.eos_token_id or 0]
            for q in batch["question"]
        ]
        width = max(map(len, encoded))
        text = torch.zeros(len(encoded), width, dtype=torch.long)
        mask = torch.zeros_like(text)
        for row, tokens in enumerate(encoded):
            text[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
        each = torch.arange(len(encoded)).repeat_interleave(images)
        return {"text_ids": text[each].to(ids.device), "text_mask": mask[each].to(ids.device)}
