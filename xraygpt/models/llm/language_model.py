"""A text-only language model: the LLM of the `nano` preset, made from training reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from xraygpt.common.checks import Checks
from xraygpt.common.registry import registry
from xraygpt.models.base import Texts, renderer_of
from xraygpt.models.causal import CausalModel
from xraygpt.models.llm import llm_files
from xraygpt.models.llm import small_llm as language
from xraygpt.models.text_assets import saved_tokenizer
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import load_prompts


@registry.register_model("language_model")
class LanguageModel(CausalModel):
    """A small Llama and its tokenizer, both learned here; every checkpoint holds it as `llm/`."""

    @dataclass(kw_only=True)
    class Config(CausalModel.Config):
        """Settings of the language model."""

        llm: language.SmallLLM = field(default_factory=language.SmallLLM)
        """Its size, and its tokenizer's."""
        llama_model: str | None = None
        """Go on from this LLM instead of a random one; its tokenizer is kept."""
        dropout: float = 0.0
        """Of the embeddings and of what each attention and MLP adds, while training, in [0, 1)."""
        max_txt_len: int | None = 256
        """Most tokens of an answer, its end included."""
        end_sym: str | None = None
        """Closes every answer; None takes the template's."""
        prompt_path: Path | None = None
        """Questions, one a line; one is drawn for each sample that brings none."""
        prompt_template: str = "xraygpt"
        """As in the model that will use this LLM."""
        seed: int = 0
        """Of the random initial weights."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.share_below_one("dropout")

    config: Config
    loss_on_all_tokens = True
    unsupported: Mapping[str, str] = {
        "export": "its runs hold a transformers folder already (llm/)",
        "chat": "it reads text alone; a model that takes it as `llama_model` reads images",
    }

    def __init__(
        self, config: Config, *, texts: Texts = list, assets: Path | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.llm: Any
        if config.llama_model is not None:
            self.llm, self.tokenizer = llm_files.load_llm(config.llama_model, "float32")
        else:
            self.tokenizer = saved_tokenizer(assets) or self._tokenizer(texts)
            self.llm = language.new_llm(config.llm, self.tokenizer, config.seed)
        self._add_dropout()
        self.context_len: int = self.llm.config.max_position_embeddings
        self.image_spec = ImageSpec(image_size=8, mean=(0.5,), std=(0.5,), tokens_per_image=0)
        self.renderer = renderer_of(config, self.tokenizer, assets=assets)

    def _add_dropout(self) -> None:
        """Llama has none of its own; a few thousand reports are known by heart without it."""

        def drop(module: nn.Module, _: Any, output: Any) -> Any:
            whole = output if isinstance(output, tuple) else (output,)
            first = F.dropout(whole[0], self.config.dropout, module.training)
            return (first, *whole[1:]) if isinstance(output, tuple) else first

        if self.config.dropout:
            decoder = self.llm.get_decoder()
            parts = [
                decoder.embed_tokens,
                *(p for x in decoder.layers for p in (x.self_attn, x.mlp)),
            ]
            for part in parts:
                part.register_forward_hook(drop)

    def _tokenizer(self, texts: Texts) -> Any:
        prompts = load_prompts(self.config.prompt_path)
        return language.new_tokenizer([*prompts, *texts()], self.config.llm.vocab_size)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """All weights, the tied output layer once."""
        return {k: v for k, v in self.state_dict().items() if k != "llm.lm_head.weight"}

    def check_assets(self, folder: Path) -> None:
        """The tokenizer learned from the corpus must be the one the weights were trained with.

        Raises:
            WeightsError: It is another one: the corpus has changed since.
        """
        language.check_tokenizer(folder / "llm", self.tokenizer)

    def save_assets(self, folder: Path) -> None:
        """Write `llm/`: a transformers folder that `model.llama_model` takes."""
        super().save_assets(folder)
        self.llm.save_pretrained(folder / "llm")
        self.tokenizer.save_pretrained(folder / "llm")
