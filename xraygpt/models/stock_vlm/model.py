"""Stock vision-language models of transformers: Qwen-VL and LLaVA-OneVision.

Forward pass:
 1. the model's own processor makes patches or tiles of every image and frame (in the collator);
 2. the vision tower and the projector turn them into tokens, unless these come from the cache;
 3. the tokens replace their placeholders among the embedded text;
 4. the language model reads the row; the loss is computed on the answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from xraygpt.boxes.spelling import SpellingName
from xraygpt.common.checks import Checks
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.media.base import Media, MediaRef
from xraygpt.models.base import Collation, build_renderer
from xraygpt.models.capabilities import ExportSettings
from xraygpt.models.causal import CausalModel
from xraygpt.models.llm.llm_files import set_4bit_cpu_kernel
from xraygpt.models.param_groups import ParamGroup, decay_groups
from xraygpt.models.stock_vlm import adapters, export, loading
from xraygpt.models.stock_vlm.collator import (
    StackedMedia,
    StockCollator,
    unpack_layouts,
    unstack,
)
from xraygpt.models.stock_vlm.config import StockSettings
from xraygpt.models.stock_vlm.family import PARTS, Family
from xraygpt.models.stock_vlm.media_input import Layout
from xraygpt.models.stock_vlm.parts import identify, trained_layers, weights_identity
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID

log = logging.getLogger(__name__)

_LARGE = 10**9  # weights, above which activations are recomputed on a GPU


_SPEC = ImageSpec(
    image_size=224, mean=(0.5,), std=(0.5,), tokens_per_image=0, processor="native_pixels"
)


def build_collation(family: Family, config: StockSettings, assets: Path | None = None) -> Collation:
    """Return how batches are made for a model.

    Args:
        family: The model, whose weights are not used.
        config: The settings.
        assets: A checkpoint folder, see `build_renderer`.
    """
    processor = family.processor
    marks = {"image": processor.image_token, "video": processor.video_token}
    text = family.network.config.get_text_config()
    return Collation(
        build_renderer(config.text, processor.tokenizer, assets=assets, media_marks=marks),
        StockCollator(family, shrink=config.media.shrink),
        min(text.max_position_embeddings, config.context or 10**9),
        _SPEC,
    )


@registry.register_model("stock_vlm")
class StockVlm(CausalModel):
    """A model of transformers with its own processor, chat template and positions."""

    @dataclass(kw_only=True)
    class Config(StockSettings, CausalModel.Config):
        """Settings of a stock model."""

        is_pretrained: ClassVar[bool] = True

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(16, "context")
                why = "cannot be combined with bits, since quantized weights cannot be trained"
                quantized = self.bits is not None and self.trained_layers is not None
                check.refuse(quantized, "trained_layers", why, "bits")
                why = "needs freeze_language: false"
                lost = self.trained_layers is not None and self.freeze_language
                check.refuse(lost, "trained_layers", why, "freeze_language")

        def collation(self) -> Collation | None:
            """Return how batches are made, from the folder's processor and configuration."""
            return build_collation(loading.load_family(self, weights=False), self)

    reads_clips = True
    unsupported: Mapping[str, str] = {
        "maps": "its tokens are patches, without a cross-attention to the image"
    }
    frozen_parts = ("network.",)
    media_collator: StockCollator
    config: Config

    def __init__(self, config: Config, *, assets: Path | None = None, **_: Any) -> None:
        super().__init__(config)
        self.family: Family = loading.load_family(config)
        self.network, self.processor = self.family.network, self.family.processor
        if config.adapter_path is not None:
            count = adapters.merge_foreign_adapter(self.family, config.adapter_path)
            log.info("adapter %s: merged into %d layers", config.adapter_path, count)
        self._identity = identify(self.family)
        self._select_trained()
        self.tokenizer = self.processor.tokenizer
        collation = build_collation(self.family, config, assets)
        self.renderer = collation.renderer
        self.media_collator = StockCollator(self.family, shrink=config.media.shrink)
        self.image_spec, self.context_len = collation.image_spec, collation.context_len
        self._warned = False
        self.store: Any = None  # of features, see `cache_media`
        self._frozen_tower = self._frozen_projector = False
        self._note_frozen()

    def _select_trained(self) -> None:
        """Set which weights are trained, and add adapters."""
        config = self.config
        self.network.requires_grad_(False)
        if config.adapters is not None:
            adapters.add_adapters(self.family, config.adapters)
        frozen = {part: getattr(config, f"freeze_{part}") for part in PARTS}
        frozen["language"] = frozen["language"] or config.adapters is not None
        layers = trained_layers(self.network, config.trained_layers)
        for name, parameter in self.network.named_parameters():
            fixed = not parameter.is_floating_point() or self.family.is_unused(name)
            if adapters.is_adapter(name) or fixed:
                continue
            part = self.family.part_of(name)
            chosen = part != "language" or layers is None or name.startswith(layers)
            if not frozen[part] and chosen:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
        if self._recomputes():
            self.network.activation_checkpointing_enable({"use_reentrant": False})
            self.network.enable_input_require_grads()

    def _recomputes(self) -> bool:
        if self.config.grad_checkpoint is not None:
            return self.config.grad_checkpoint
        size = sum(p.numel() for p in self.network.parameters())
        return torch.cuda.is_available() and size > _LARGE

    def _note_frozen(self) -> None:
        named = self.network.named_parameters()
        trained = {self.family.part_of(name) for name, p in named if p.requires_grad}
        self._frozen_tower = "vision" not in trained
        self._frozen_projector = "projector" not in trained

    @property
    def llm(self) -> Any:
        """The language model, which reads tokens of the width that `embed` returns."""
        return self.family.llm

    # --- torch and optimizer ---------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set the mode as torch does, but keep a frozen tower in evaluation mode."""
        super().train(mode)
        if self._frozen_tower:
            for tower in self.family.towers:
                tower.eval()
        return self

    @property
    def device(self) -> torch.device:
        """The device of the embeddings."""
        device: torch.device = self.network.get_input_embeddings().weight.device
        return device

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Convert as torch's `to` does, unless the parts have fixed devices."""
        fixed = self.config.device_map or self.config.bits
        return self if fixed else super()._apply(fn, recurse)

    def param_groups(self) -> list[ParamGroup]:
        """Return the trained weights by part, each with its factor on the learning rate."""
        groups: list[ParamGroup] = []
        trained = self.trainable_parameters()
        for part in PARTS:
            named = [
                (n, p)
                for n, p in trained
                if self.family.part_of(n.removeprefix("network.")) == part
            ]
            scale = getattr(self.config.lr_scale, part)
            for group in decay_groups(named, self.no_weight_decay()):
                groups.append({**group, "lr_scale": scale, "name": part})
        return groups

    def merge_lora(self) -> None:
        """Merge adapters into the weights, unless these are quantized or spread over devices."""
        set_4bit_cpu_kernel(self.network, True)
        if self.config.adapters is not None and self.config.device_map is None:
            adapters.merge_adapters(self.network)

    # --- media to tokens -------------------------------------------------------------------------

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """Embed as every causal model does; in training, use all parameters even without media."""
        embeds = super().embed(batch, tokens)
        trained = not (self._frozen_tower and self._frozen_projector)
        if tokens is None and self.training and trained and not self._has_pixels(batch):
            # DDP needs gradients for the same parameters on all ranks.
            tokens = self._encode([self._dummy_image()])
            return embeds + 0 * tokens[0].sum().to(embeds.dtype)
        return embeds

    def _has_pixels(self, batch: Batch) -> bool:
        return "pixel_values" in batch["media_inputs"] or "features" in batch["media_inputs"]

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """Compute the (L, W) tokens of each medium in a batch, in the order of the token runs."""
        return self._all_tokens(unstack(batch["media_inputs"]))

    def _all_tokens(self, stacked: StackedMedia) -> list[Tensor]:
        pairs = zip(self._features(stacked), stacked.layouts, strict=True)
        return [self._tokens(features, layout) for features, layout in pairs]

    def _features(self, stacked: StackedMedia) -> list[Tensor]:
        """Return the frozen parts' output for each medium, from the cache or computed."""
        features = list(stacked.features)
        missing = [i for i, f in enumerate(features) if f is None]
        if not missing:
            return [f for f in features if f is not None]
        # Cached features must not depend on the batch, not even through rounding.
        alone = self.store is not None
        for part in [[i] for i in missing] if alone else [missing]:
            pixels = [p for i in part if (p := stacked.pixels[i]) is not None]
            layouts = [stacked.layouts[i] for i in part]
            for i, values in zip(part, self._run_tower(torch.cat(pixels), layouts), strict=True):
                features[i] = values
                if stacked.names[i] and self.store is not None:
                    features[i] = self.store.put(
                        stacked.names[i], values, stacked.layouts[i].pack()
                    )
        return [f for f in features if f is not None]

    def _run_tower(self, pixels: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
        frozen = self._frozen_tower and (self.family.splits or self._frozen_projector)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return self.family.tower(pixels, layouts)

    def _tokens(self, features: Tensor, layout: Layout) -> Tensor:
        """Return all tokens of a medium: those of the tower, and embedded text between them."""
        frozen = self._frozen_projector and not features.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            visual = self.family.project(features, layout)
        if len(visual) == len(layout.ids):
            return visual
        ids = torch.tensor(layout.ids, device=visual.device)
        embeds: Tensor = self.llm.get_input_embeddings()(ids)
        at = (ids == self.family.image_id) | (ids == self.family.video_id)
        return embeds.index_put((at.nonzero().squeeze(1),), visual.to(embeds))

    def _encode(self, media: Sequence[Media]) -> list[Tensor]:
        inputs = self.media_collator.stack([media])
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        stacked = unstack(inputs)
        return self._all_tokens(stacked)

    def _dummy_image(self) -> Media:
        return Media(torch.zeros(3, 56, 56))

    def positions(self, batch: Batch) -> Tensor | None:
        """Return the position ids of a decoder with M-RoPE."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        inputs = batch["media_inputs"]
        layouts = unpack_layouts(inputs) if inputs else []
        return self.family.positions(
            self._real_ids(batch, layouts),
            mask,
            torch.tensor([layout.grid for layout in layouts], device=ids.device).view(-1, 3),
            torch.tensor([layout.seconds for layout in layouts], device=ids.device),
            torch.tensor([layout.kind == "clip" for layout in layouts], dtype=torch.bool),
        )

    def _real_ids(self, batch: Batch, layouts: Sequence[Layout]) -> Tensor:
        """Return (B, T) ids as the stock processor writes them."""
        ids = batch["input_ids"]
        # A model may write the ids of media into its answers, where they are text.
        not_text = torch.tensor(
            [IMAGE_TOKEN_ID, self.family.image_id, self.family.video_id], device=ids.device
        )
        ids = ids.masked_fill(torch.isin(ids, not_text), 0)
        for run, layout in zip(batch["runs"], layouts, strict=True):
            ids[run.row, run.start : run.start + run.length] = torch.tensor(layout.ids).to(ids)
        return ids

    # --- cache -----------------------------------------------------------------------------------

    def box_spelling(self, corpus: SpellingName) -> SpellingName:
        """Return how the model writes boxes; see `BaseModel.box_spelling`.

        Published weights that nobody has fine-tuned get a warning if they write them otherwise.
        """
        untrained = self.config.ckpt is None and self.config.adapter_path is None
        own = self.family.boxes
        if self.config.boxes is None and untrained and own != corpus and not self._warned:
            self._warned = True
            log.warning(
                "%s writes boxes as %s unless it is fine-tuned; they are read as %s, as the corpus "
                "writes them. If it was not fine-tuned, set model.boxes: %s",
                self.family.network.config.model_type, own, corpus, own,
            )  # fmt: skip
        return super().box_spelling(corpus)

    def media_key(self) -> str | None:
        """Return an identifier of the frozen parts and the processor; None if nothing is frozen."""
        if not self._frozen_tower or not (self.family.splits or self._frozen_projector):
            return None
        return weights_identity(self.family, projected=self._frozen_projector)

    def media_context(self, refs: Sequence[MediaRef]) -> str:
        """Return "tiled" if the family splits an only image into tiles."""
        return self.family.context([ref.kind for ref in refs])

    def cache_media(self, store: Any) -> None:
        """Store features of media with a name, as they are computed."""
        self.store = store

    # --- checkpoints and export ------------------------------------------------------------------

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return the trained weights, and those that came from a checkpoint."""
        trained = {name for name, _ in self.trainable_parameters()}
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in trained or name in self.loaded_keys
        }

    def save_assets(self, folder: Path) -> None:
        """Write the prompts, and what identifies the model that the weights belong to."""
        super().save_assets(folder)
        export.write_identity(folder, self._identity)

    def check_assets(self, folder: Path) -> None:
        """Refuse weights that were trained with another model.

        Raises:
            WeightsError: The checkpoint belongs to another model.
        """
        export.check_identity(folder, self._identity, self.config.path)

    def fresh_keys(self) -> tuple[str, ...]:
        """Return the adapters, which initially have no effect."""
        return (".lora_",)

    def facts(self) -> dict[str, str]:
        """Return the type and the folder of the model."""
        return {"model": self.config.path.name, "type": self.network.config.model_type}

    def parts(self) -> dict[str, str]:
        """Return the digest of the model before any checkpoint was loaded."""
        return dict(self._identity)

    def export_layouts(self) -> tuple[str, ...]:
        """Return the layouts: today's folder of transformers, and one with the names before 5.0."""
        return export.LAYOUTS

    def export(self, layout: str, out: Path, settings: ExportSettings) -> str:
        """Write a folder that transformers opens, with adapters merged."""
        return export.export_folder(self, layout, out, settings)
