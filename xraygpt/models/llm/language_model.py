"""A text-only language model, which the `nano` preset trains on reports as its LLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import ProjectName, ProjectPath
from xraygpt.common.registry import registry
from xraygpt.common.requirements import Missing, missing_llm
from xraygpt.models.base import TextSource, build_renderer
from xraygpt.models.causal import CausalModel
from xraygpt.models.llm import llm_files
from xraygpt.models.llm import small_llm as language
from xraygpt.models.llm.dropout import add_dropout
from xraygpt.models.text_assets import saved_tokenizer
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import load_prompts


@registry.register_model("language_model")
class LanguageModel(CausalModel):
    """A small Llama with its own tokenizer; checkpoints contain both as a folder `llm/`."""

    @dataclass(kw_only=True)
    class Config(CausalModel.Config):
        """Settings for the language model."""

        llm: language.SmallLLM = field(default_factory=language.SmallLLM)
        """Size of the network and of the vocabulary."""
        llama_model: ProjectName | None = None
        """LLM to start from instead of random weights; its tokenizer is used."""
        dropout: float = 0.0
        """Dropout rate for embeddings and for the output of each attention and MLP, in [0, 1)."""
        max_txt_len: int | None = 256
        """Maximum length of an answer in tokens, including its end."""
        end_sym: str | None = None
        """End of every answer; None uses the template's."""
        prompt_path: ProjectPath | None = None
        """File with one question per line; samples without a question get a randomly chosen one."""
        prompt_template: str = "xraygpt"
        """The template that the model using this LLM will have."""
        seed: int = 0
        """Seed of the random initial weights."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.fraction_below_one("dropout")

        def missing(self, where: str) -> list[Missing]:
            """List the LLM and the files that do not exist."""
            return super().missing(where) + missing_llm(f"{where}.llama_model", self.llama_model)

    config: Config
    loss_on_all_tokens = True
    unsupported: Mapping[str, str] = {
        "export": "its checkpoints already contain a transformers folder (llm/)",
        "chat": "it only reads text; set it as `llama_model` in a model that reads images",
    }

    def __init__(
        self, config: Config, *, texts: TextSource = list, assets: Path | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.llm: Any
        if config.llama_model is not None:
            self.llm, self.tokenizer = llm_files.load_llm(config.llama_model, "float32")
        else:
            self.tokenizer = saved_tokenizer(assets) or self._train_tokenizer(texts)
            self.llm = language.new_llm(config.llm, self.tokenizer, config.seed)
        add_dropout(self.llm, config.dropout)
        self.context_len: int = self.llm.config.max_position_embeddings
        self.image_spec = ImageSpec(image_size=8, mean=(0.5,), std=(0.5,), tokens_per_image=0)
        self.renderer = build_renderer(config, self.tokenizer, assets=assets)

    def _train_tokenizer(self, texts: TextSource) -> Any:
        prompts = load_prompts(self.config.prompt_path)
        return language.new_tokenizer([*prompts, *texts()], self.config.llm.vocab_size)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return all weights except the output layer, which is tied to the embeddings."""
        return {k: v for k, v in self.state_dict().items() if k != "llm.lm_head.weight"}

    def check_assets(self, folder: Path) -> None:
        """Check that the tokenizer is the one that a checkpoint was trained with.

        Raises:
            WeightsError: The tokenizers differ because the corpus has changed.
        """
        language.check_tokenizer(folder / "llm", self.tokenizer)

    def save_assets(self, folder: Path) -> None:
        """Write `llm/`, a transformers folder for `model.llama_model`."""
        super().save_assets(folder)
        self.llm.save_pretrained(folder / "llm")
        self.tokenizer.save_pretrained(folder / "llm")
