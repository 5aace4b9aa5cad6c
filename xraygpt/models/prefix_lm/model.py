"""The prefix language model: embeddings of a study -> projection -> decoder -> report.

Forward pass:
 1. embeddings are scaled, projected to the decoder's width, and marked with their view and type;
 2. they replace the placeholders among the embedded text tokens;
 3. the decoder reads the row; the embeddings all have position 0 and see each other, so that a
    study is a set; the loss is computed on the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xraygpt.common.checks import Checks
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.models import param_groups
from xraygpt.models.base import TextSource, build_renderer
from xraygpt.models.capabilities import ExportSettings
from xraygpt.models.causal import CausalModel
from xraygpt.models.llm import small_llm
from xraygpt.models.llm.positions import count_positions
from xraygpt.models.prefix_lm import decoder, export, tokenizer
from xraygpt.models.prefix_lm.collator import EmbeddingCollator
from xraygpt.models.prefix_lm.config import DecoderConfig, PrefixConfig, PrefixText
from xraygpt.models.prefix_lm.position_mask import attend_by_position
from xraygpt.models.prefix_lm.projector import Projector
from xraygpt.models.qformer_llm.assets import check_parts, write_parts
from xraygpt.models.text_assets import saved_tokenizer
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID, load_prompts
from xraygpt.prompting.templates import find_template


@registry.register_model("prefix_lm")
class PrefixLM(CausalModel):
    """Embeddings as a prefix of a decoder, which is trained from scratch or pretrained."""

    @dataclass(kw_only=True)
    class Config(CausalModel.Config):
        """Settings for the model."""

        prefix: PrefixConfig = field(default_factory=PrefixConfig)
        llm: DecoderConfig = field(default_factory=DecoderConfig)
        text: PrefixText = field(default_factory=PrefixText)
        seed: int = 0
        """Seed of the random initial weights."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                flash = str(self.llm.attention or "").startswith("flash")
                check.refuse(
                    flash and self.prefix.positions == "set",
                    "llm.attention",
                    "FlashAttention takes no mask, which a set of embeddings needs: use sdpa, or "
                    "prefix.positions: sequence",
                    "prefix.positions",
                )
                self._check_template(check)

        def _check_template(self, check: Checks) -> None:
            name = self.text.prompt_template
            template = find_template(name)
            own = name in ("study_report", "study_chat")
            why = "needs the tokenizer of a new decoder; for a pretrained LLM, use study_text"
            check.refuse(own and self.llm.source, "text.prompt_template", f"{name} {why}")
            # Otherwise the last embedding would predict the first word, whichever it is.
            bare = template is not None and not template.turn.split("{}")[1]
            why = "must write something after a study, such as study_text or study_report"
            check.refuse(
                bare and self.prefix.positions == "set",
                "text.prompt_template",
                why,
                "prefix.positions",
            )

    config: Config
    average_tokens: Tensor
    average_count: Tensor
    frozen_parts = ("llm.",)
    unsupported: Mapping[str, str] = {
        "features": "embeddings are features already",
        "maps": "it reads embeddings, which have no regions",
        "findings": "it has no finding head",
    }

    def __init__(
        self, config: Config, *, texts: TextSource = list, assets: Path | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.llm: Any
        self.tokenizer: Any
        if config.llm.source is None:
            self.tokenizer = saved_tokenizer(assets) or self._train_tokenizer(texts)
            self.llm = decoder.new_decoder(config.llm.size, self.tokenizer, config.seed)
        else:
            self._load_llm(config.llm)
        attend_by_position(self.llm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            weights = self.llm.get_input_embeddings().weight.detach()
            size = float(weights.float().pow(2).mean().sqrt())
            self.projector = Projector(config.prefix, self.llm.config.hidden_size, size)
        self._add_averages()
        self.media_collator = EmbeddingCollator(config.prefix)
        self.image_spec = ImageSpec(image_size=224, mean=(0.5,), std=(0.5,), tokens_per_image=1)
        self.context_len: int = self.llm.config.max_position_embeddings
        self.renderer = build_renderer(config.text, self.tokenizer, assets=assets)

    def _train_tokenizer(self, texts: TextSource) -> Any:
        prompts = load_prompts(self.config.text.prompt_path)
        size = self.config.llm.size.vocab_size
        return tokenizer.new_report_tokenizer(chain(prompts, texts()), size)

    def _load_llm(self, config: DecoderConfig) -> None:
        self.llm, self.tokenizer = config.load()
        self._llm_digest = small_llm.digest(self.llm)
        self.llm.requires_grad_(not config.freeze)
        if config.lora is not None:
            small_llm.add_lora(self.llm, config.lora)
        if config.grad_checkpoint:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})

    # --- embeddings to tokens ------------------------------------------------------------------

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """Compute the (L, H) tokens of each medium in a batch, in the order of the token runs."""
        tokens: Tensor = self.projector(**batch["media_inputs"])
        if self.training:
            self._update_averages(tokens.detach(), batch["media_inputs"]["views"])
        return list(tokens.split([run.length for run in batch["runs"]]))

    def _add_averages(self) -> None:
        """Add the running mean of each view's tokens, for guidance; 0 stands for other views."""
        count = len(self.config.prefix.views) + 1
        self.register_buffer("average_tokens", torch.zeros(count, self.llm.config.hidden_size))
        self.register_buffer("average_count", torch.zeros(count))

    @torch.no_grad()
    def _update_averages(self, tokens: Tensor, views: Tensor) -> None:
        """Update the running means with (N, H) tokens, over about 100 batches."""
        number = torch.bincount(views, minlength=len(self.average_count))
        sums = torch.zeros_like(self.average_tokens).index_add(0, views, tokens.float())
        seen = number > 0
        self.average_count += seen
        weight = (1 / self.average_count.clamp(min=1)).clamp(min=0.01) * seen
        means = sums / number.clamp(min=1)[:, None]
        self.average_tokens += weight[:, None] * (means - self.average_tokens)

    def embed_average(self, batch: Batch) -> Tensor | None:
        """Embed with the average of its view in place of each embedding."""
        if not batch["media_inputs"]:
            return self.embed(batch)
        views = batch["media_inputs"]["views"]
        if not bool(self.average_count[views].all()):
            return None
        tokens = self.average_tokens[views]
        return self.embed(batch, list(tokens.split([run.length for run in batch["runs"]])))

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """Embed as every causal model does; in training, use all parameters even without media."""
        embeds = super().embed(batch, tokens)
        if tokens is None and not batch["media_inputs"] and self.training:
            # DDP needs gradients for the same parameters on all ranks.
            none = torch.zeros(1, dtype=torch.long, device=embeds.device)
            empty = torch.zeros(1, self.config.prefix.width, device=embeds.device)
            return embeds + (0 * self.projector(empty, none, none).sum()).to(embeds.dtype)
        return embeds

    def positions(self, batch: Batch) -> Tensor | None:
        """Return (1, B, T) position ids: 0 for embeddings, from 1 on for the text after them.

        None if this is how tokens are numbered anyway, or if embeddings are a sequence.
        """
        if self.config.prefix.positions == "sequence":
            return None
        mask = batch["attention_mask"].bool()
        media = (batch["input_ids"] == IMAGE_TOKEN_ID) & mask
        positions = (count_positions(mask & ~media) + media.any(dim=1, keepdim=True)) * ~media
        usual = count_positions(mask)
        return None if bool(((positions == usual) | ~mask).all()) else positions[None]

    # --- optimizer, checkpoints and export -----------------------------------------------------

    def param_groups(self) -> list[param_groups.ParamGroup]:
        """Return groups with nanochat's ratios of learning rates for a new decoder."""
        if self.config.llm.source is not None:
            return super().param_groups()
        scale = (self.llm.config.hidden_size / decoder.TUNED_WIDTH) ** -0.5
        embedding, head = self.llm.model.embed_tokens.weight, self.llm.lm_head.weight
        own = {id(embedding), id(head)}
        matrices = [p for p in self.llm.parameters() if id(p) not in own]
        groups: list[param_groups.ParamGroup] = [
            {"params": matrices, "name": "layers"},
            {
                "params": [embedding],
                "lr_scale": decoder.EMBEDDING_LR * scale,
                "weight_decay": 0.0,
                "name": "token embeddings",
            },
            {
                "params": [head],
                "lr_scale": decoder.HEAD_LR * scale,
                "weight_decay": 0.0,
                "name": "output layer",
            },
            {"params": list(self.projector.parameters()), "weight_decay": 0.0, "name": "projector"},
        ]
        return [group for group in groups if group["params"]]

    def hidden_matrices(self) -> list[torch.nn.Parameter]:
        """Return the decoder's matrices; the projector reads a few vectors per study, not many."""
        return param_groups.hidden_matrices(self.llm)

    def merge_lora(self) -> None:
        """Merge LoRA into the LLM's weights, unless these are quantized or spread over devices."""
        config = self.config.llm
        if config.lora is not None and config.device_map is None:
            small_llm.merge_lora_weights(self.llm)

    def fresh_keys(self) -> tuple[str, ...]:
        """Return LoRA's names, and those of views and types, which a checkpoint may lack."""
        return ("lora_", "projector.view_table", "projector.type_table", "average_")

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return all weights, or those that are trained and the projector beside a frozen LLM."""
        state = self.state_dict()
        if not self.config.llm.freeze:
            return state
        trained = {name for name, _ in self.trainable_parameters()}
        kept = trained | self.loaded_keys
        return {
            n: t for n, t in state.items() if n.startswith(("projector.", "average_")) or n in kept
        }

    def save_assets(self, folder: Path) -> None:
        """Write `llm/`, the tokenizer and the configuration of a new decoder."""
        super().save_assets(folder)
        if self.config.llm.source is None:
            self.llm.config.save_pretrained(folder / "llm")
            self.tokenizer.save_pretrained(folder / "llm")
        else:
            write_parts(folder, self._description())

    def check_assets(self, folder: Path) -> None:
        """Check that a checkpoint's tokenizer, or the LLM it was trained with, is the model's own.

        Raises:
            WeightsError: The tokenizers differ because the corpus has changed, or the LLMs do.
        """
        if self.config.llm.source is None:
            small_llm.check_tokenizer(folder / "llm", self.tokenizer)
        else:
            check_parts(folder, self._description(), self.config.llm.source)

    def _description(self) -> dict[str, Any]:
        lora = self.config.llm.lora
        return {
            "llm": self._llm_digest,
            "prompt_template": self.config.text.prompt_template,
            "end_sym": self.renderer.end_sym,
            "lora_alpha": lora.alpha if lora else None,
        }

    def export_layouts(self) -> Sequence[str]:
        """Return the name of the only layout, a folder for transformers."""
        return ("transformers",)

    def export(self, layout: str, out: Path, settings: ExportSettings) -> str:
        """Write the model as a folder; see `export.to_transformers`."""
        return export.to_transformers(self, out, settings)

    def facts(self) -> dict[str, str]:
        """Return the size of the decoder."""
        count = sum(p.numel() for p in self.llm.parameters()) / 1e6
        name = self.config.llm.source or f"trained from scratch, {count:.1f} M parameters"
        return {"LLM": str(name)}
