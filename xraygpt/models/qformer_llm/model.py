"""The Q-Former model: image -> vision encoder -> Q-Former -> projection -> LLM -> answer.

Forward pass:
 1. the vision encoder computes patch tokens of every image (skipped for cached features);
 2. the Q-Former's queries turn them into a fixed number of tokens per image;
 3. a linear layer projects these to the LLM's width;
 4. they replace the placeholders among the embedded text tokens;
 5. the LLM reads the row; the loss is computed on the answers.
Several images, several turns, text-only rows and mixed batches need nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import registry
from xraygpt.common.requirements import FrozenParts
from xraygpt.datasets.base import Batch
from xraygpt.models.base import build_renderer
from xraygpt.models.capabilities import ExportSettings
from xraygpt.models.causal import CausalModel
from xraygpt.models.llm import llm_files, small_llm
from xraygpt.models.llm.config import LLMConfig
from xraygpt.models.media_tokens import split_by_run
from xraygpt.models.qformer_llm import assets as model_assets
from xraygpt.models.qformer_llm import build, import_weights
from xraygpt.models.qformer_llm.config import BridgeConfig
from xraygpt.models.qformer_llm.head import WithFindingHead
from xraygpt.models.qformer_llm.pack import pack_parts
from xraygpt.models.qformer_llm.qformer import QFormer
from xraygpt.models.qformer_llm.query_collator import QueryCollator
from xraygpt.models.text_config import TextConfig
from xraygpt.models.tracing import cross_attentions, mean_of_layers
from xraygpt.models.vision.base import weights_digest
from xraygpt.models.vision.config import VisionConfig
from xraygpt.models.vision.finding_head import load_configured_head
from xraygpt.processors.image import ImageSpec


@registry.register_model("xraygpt", "mini_gpt4")
class XrayGPT(WithFindingHead, CausalModel):
    """Frozen vision encoder, Q-Former, projection, frozen LLM."""

    @dataclass(kw_only=True)
    class Config(CausalModel.Config):
        """Settings for the model; LAVIS's flat keys work too (`common.model_keys.MODEL_KEYS`)."""

        untrained_part: ClassVar[str] = "Q-Former"

        vision: VisionConfig = field(default_factory=VisionConfig)
        qformer: BridgeConfig = field(default_factory=BridgeConfig)
        llm: LLMConfig = field(default_factory=LLMConfig)
        text: TextConfig = field(default_factory=TextConfig)
        finding_head: ProjectPath | None = None
        """A finding head fitted by `python -m xraygpt.probe --save` on the frozen encoder's
        features, for plans with `by: head`; null disables it."""
        seed: int = 0
        """Seed of the random initial weights."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                why = "for frozen encoders"
                check.needs("vision.freeze", "finding_head", why=why, key="freeze_vit")

        def required_weights(self) -> FrozenParts | None:
            """Return the frozen ones among the encoder, the Q-Former and the LLM."""
            return build.frozen_parts(self.vision, self.ckpt, self.qformer, self.llm)

    config: Config
    frozen_parts = ("llm.", "vision.")
    average_tokens: Tensor
    average_count: Tensor

    def __init__(self, config: Config, *, assets: Path | None = None, **_: Any) -> None:
        super().__init__(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._build_vision_and_qformer()
            self._build_llm()
        self.media_collator = QueryCollator(config.qformer.num_queries)
        self.renderer = build_renderer(config.text, self.tokenizer, assets=assets)
        self.unsupported = build.find_unsupported(self.qformer, self.finding_head)
        self.caches_queries = False  # whether cached features are the Q-Former's output

    def _build_vision_and_qformer(self) -> None:
        config = self.config
        self.vision = build.build_vision(config.vision, config.ckpt)
        width, patches = config.vision.width, None
        if self.vision is not None:
            width = self.vision.width
            patches = None if self.vision.has_position else self.vision.num_tokens
        assert width is not None
        self.finding_head = load_configured_head(config.finding_head, self.vision)
        self.qformer = self.make_qformer(width, patches)
        if config.qformer.init_from is not None and config.ckpt is None:
            import_weights.load_qformer(self, config.qformer.init_from)
        self.qformer.requires_grad_(not config.qformer.freeze)
        if config.qformer.adapter is not None:
            self.qformer.get_submodule("adapter").requires_grad_(True)

    def _build_llm(self) -> None:
        """Build the LLM, the projection to its width, and the average image."""
        config = self.config
        self.llm: Any
        self.llm, self.tokenizer = build.build_llm(config.llm, config.seed)
        self._digests = {
            "llm": small_llm.digest(self.llm),
            **model_assets.encoder_digest(
                config.vision.encoder, self.vision, frozen=config.vision.freeze
            ),
        }
        self.llm.requires_grad_(not config.llm.freeze)
        if config.llm.lora is not None:
            small_llm.add_lora(self.llm, config.llm.lora)
        if config.llm.grad_checkpoint:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})
        self.proj = nn.Linear(config.qformer.hidden, self.llm.config.hidden_size)
        build.init_projection(self.proj, self.llm)
        average = torch.zeros(config.qformer.num_queries, self.proj.out_features)
        self.register_buffer("average_tokens", average)  # of recent training images
        self.register_buffer("average_count", torch.zeros(()))
        self.context_len: int = self.llm.config.max_position_embeddings

    def make_qformer(self, width: int, patches: int | None) -> nn.Module:
        """Build the module between encoder and projection; a subclass may return another one.

        Args:
            width: D, the width of the features.
            patches: Number of features per image if the encoder adds no positions; otherwise None.

        Returns:
            A module that maps (N, L, D) features and their (N, L) mask, or None, to
            (N, `qformer.num_queries`, `qformer.hidden`).
        """
        return QFormer(self.config.qformer, vision_width=width, num_patches=patches)

    # --- torch and optimizer -------------------------------------------------------------------

    @property
    def image_spec(self) -> ImageSpec:  # type: ignore[override]
        """The encoder's requirements; for pre-computed features, only the token count matters."""
        count = self.config.qformer.num_queries
        if self.vision is None:
            return ImageSpec(image_size=224, mean=(0.5,), std=(0.5,), tokens_per_image=count)
        return ImageSpec(**vars(self.vision.input_spec), tokens_per_image=count)

    def train(self, mode: bool = True) -> Self:
        """Set the mode as torch does, but keep frozen parts in evaluation mode, without dropout."""
        super().train(mode)
        if self.config.qformer.freeze:
            self.qformer.eval()
        if self.config.llm.freeze and not self.config.llm.grad_checkpoint:
            self.llm.eval()
            for name, module in self.llm.named_modules():
                if name.endswith("lora_dropout"):
                    module.train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Convert as torch's `to` does, but keep parts with a fixed device on that device."""
        fixed = ["llm"] if self.config.llm.device_map else []
        fixed += ["vision"] if self.config.vision.on_cpu and self.vision is not None else []
        modules = {name: self._modules[name] for name in fixed}
        for name in fixed:
            self._modules[name] = None
        try:
            return super()._apply(fn, recurse)
        finally:
            self._modules.update(modules)

    @property
    def device(self) -> torch.device:
        """The device of all parts except an encoder with `vision.on_cpu`."""
        return self.proj.weight.device

    def no_weight_decay(self) -> tuple[str, ...]:
        """Return the name of the Q-Former's queries."""
        return ("query_tokens",)

    def merge_lora(self) -> None:
        """Merge LoRA into the LLM's weights, unless these are quantized or spread over devices."""
        llm_files.set_4bit_cpu_kernel(self.llm, True)
        if self.config.llm.lora is not None and self.config.llm.device_map is None:
            small_llm.merge_lora_weights(self.llm)

    # --- images to tokens ----------------------------------------------------------------------

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """Embed as every causal model does; in training, use all parameters even without images."""
        embeds = super().embed(batch, tokens)
        if tokens is None and not batch["media_inputs"] and self.training:
            # DDP needs gradients for the same parameters on all ranks.
            unused = 0 * self.image_tokens(**self._dummy_image(embeds)).sum()
            return embeds + unused.to(embeds.dtype)
        return embeds

    def embed_average(self, batch: Batch) -> Tensor | None:
        """Embed with the average training image in place of every image."""
        if not self.average_count and batch["media_inputs"]:
            return None
        count = self.config.qformer.num_queries
        average = [self.average_tokens.repeat(r.length // count, 1) for r in batch["runs"]]
        return self.embed(batch, average)

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """Compute the (L, H) tokens of each medium in a batch, in the order of the token runs."""
        tokens = self.image_tokens(**batch["media_inputs"], **self.qformer_text(batch))
        self._update_average(tokens)
        return split_by_run(tokens, batch, self.config.qformer.num_queries)

    @torch.no_grad()
    def traced_tokens(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return each medium's tokens and their attention to each of the encoder's features."""
        count = self.config.qformer.num_queries
        qformer: Any = self.qformer
        with cross_attentions(qformer.qformer) as layers:
            tokens = self.media_tokens(batch)
        attention = mean_of_layers(layers)[:, :count]
        frames = [run.length // count for run in batch["runs"]]
        return list(zip(tokens, attention.split(frames), strict=True))

    def qformer_text(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the Q-Former reads in addition to the images; by default, nothing."""
        return {}

    @torch.no_grad()
    def _update_average(self, tokens: Tensor) -> None:
        """Update the running mean of training images' (N, Q, H) tokens over about 100 batches."""
        if self.training:
            self.average_count += 1
            weight = (1 / self.average_count).clamp(min=0.01)
            self.average_tokens.lerp_(tokens.float().mean(dim=0), weight)

    def image_tokens(
        self,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        feature_mask: Tensor | None = None,
        **text: Tensor,
    ) -> Tensor:
        """Compute (N, Q, H) tokens from (N, C, H, W) pixels, or (N, L, D) features and their mask.

        `text` is what the Q-Former reads in addition (`qformer_text`).
        """
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        elif self.caches_queries:
            projected: Tensor = self.proj(features)
            return projected
        tokens: Tensor = self.proj(self.qformer(features, feature_mask, **text))
        return tokens

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode (N, C, H, W) images as (N, L, D), without gradients if the encoder is frozen.

        Raises:
            ValueError: The model has no encoder.
        """
        if self.vision is None:
            raise ValueError("vit_model is precomputed, so the corpus must contain .npy features")
        return build.encode(self.vision, self.config.vision, pixel_values)

    def _dummy_image(self, like: Tensor) -> dict[str, Tensor]:
        """Create one black image, or one zero feature, on the device of `like`."""
        if self.vision is not None and not self.config.vision.freeze:
            spec = self.vision.input_spec
            shape = (1, spec.channels, spec.image_size, spec.image_size)
            return {"pixel_values": torch.zeros(shape, device=like.device)}
        width = self.config.vision.width or self.vision.width  # type: ignore[union-attr]
        length = self.vision.num_tokens if self.vision is not None else 1
        if self.caches_queries:
            width, length = self.config.qformer.hidden, self.config.qformer.num_queries
        return {"features": torch.zeros(1, length, width, device=like.device)}

    # --- feature cache -------------------------------------------------------------------------

    @torch.no_grad()
    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """Encode (N, C, H, W) images as (N, L, D) float32 features for the feature cache."""
        features = self.encode(pixel_values)
        return (self.qformer(features, None) if self.caches_queries else features).float()

    def start_caching_queries(self) -> str | None:
        """If the Q-Former is frozen, cache its output, which is smaller than the encoder's."""
        key = self.feature_key()
        frozen = self.config.qformer.freeze and self.config.qformer.adapter is None
        if key is not None and frozen and not self.reads_question:
            self.caches_queries = True
            self.qformer.eval()
            key = f"{key} queries {weights_digest(self.qformer)}"
        return key

    def feature_key(self) -> str | None:
        """Return an identifier of the frozen encoder's weights; None if it is trained or absent."""
        config = self.config.vision
        if self.vision is None or not config.freeze:
            return None
        on_gpu = torch.cuda.is_available() and not config.on_cpu
        precision = config.precision if on_gpu else "fp32"
        return f"{config.encoder} {precision} {self.vision.digest()}"

    # --- checkpoints and export ----------------------------------------------------------------

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return the Q-Former and projection, and the trained weights of the LLM and encoder."""
        trained = {name for name, _ in self.trainable_parameters()}
        train_vision = not self.config.vision.freeze
        buffers = {name for name, _ in self.named_buffers()} if train_vision else set()
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(("qformer.", "proj.", "average_"))
            or name in trained
            or name in self.loaded_keys
            or (name in buffers and name.startswith("vision."))
        }

    def save_assets(self, folder: Path) -> None:
        """Write the prompts, and the LLM, encoder and text settings that the weights belong to."""
        super().save_assets(folder)
        model_assets.write_parts(folder, self._description())

    def check_assets(self, folder: Path) -> None:
        """Refuse another LLM or encoder; warn about another template, ending or LoRA scale.

        Raises:
            WeightsError: The checkpoint was trained with another LLM or encoder.
        """
        model_assets.check_parts(folder, self._description(), self.config.llm.source)

    def _description(self) -> dict[str, Any]:
        lora = self.config.llm.lora
        return {
            **self._digests,
            "vit_model": self.config.vision.encoder,
            "prompt_template": self.config.text.prompt_template,
            "end_sym": self.renderer.end_sym,
            "lora_alpha": lora.alpha if lora else None,
        }

    def pack_into(self, state: dict[str, Tensor], folder: Path, out: Path) -> Config:
        """Write a bundle that includes the encoder, LLM and finding head if runs trained them."""
        packed: XrayGPT.Config = pack_parts(self, state, folder, out)
        return packed

    def export_layouts(self) -> tuple[str, ...]:
        """Return the layouts for XrayGPT's `.pth` file and for BLIP-2 in transformers."""
        return ("pth", "transformers")

    def export(self, layout: str, out: Path, settings: ExportSettings) -> str:
        """Write the model in the layout of another project.

        Raises:
            WeightsError: The layout cannot represent a part of the model; the message names it.
        """
        from xraygpt.models.qformer_llm.export import to_pth, to_transformers

        return (to_pth if layout == "pth" else to_transformers)(self, out, settings)

    def facts(self) -> dict[str, str]:
        """Return the names of the encoder and the LLM."""
        llm = Path(self.config.llm.source or "random, for tests").name
        return {"vision encoder": self.config.vision.encoder, "LLM": llm}

    def parts(self) -> dict[str, str]:
        """Return digests of the LLM before any checkpoint was loaded and of the finding head."""
        head = self.finding_head
        return {**self._digests, **({} if head is None else {"finding_head": head.digest()})}

    def convert_state(
        self, state: dict[str, Tensor], source: Path
    ) -> tuple[dict[str, Tensor], set[str]] | None:
        """Convert weights from XrayGPT, MiniGPT-4 or LAVIS, whose parts are complete or absent."""
        return import_weights.convert_foreign_state(self, state, source)

    def fresh_keys(self) -> tuple[str, ...]:
        """Return LoRA, which initially has no effect, and the average image, which LAVIS lacks."""
        return ("lora_", "average_")
