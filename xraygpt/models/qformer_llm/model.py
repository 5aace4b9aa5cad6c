"""The composition: image -> vision encoder -> Q-Former -> linear -> LLM -> answer.

Numbered forward pass:
 1. the vision encoder makes patch tokens of every image of the batch (skipped for stored features);
 2. the Q-Former's queries read them: a fixed number of tokens per image;
 3. a linear layer brings these to the LLM's width;
 4. they take the places of the placeholders among the embedded text tokens;
 5. the LLM reads the row; the loss is taken at the answers only.
Nothing else is special, so several images, several turns, text-only rows and mixed batches all
work.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from xraygpt.common.checks import Checks
from xraygpt.common.errors import WeightsError
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.models.base import build_renderer
from xraygpt.models.capabilities import ExportSettings
from xraygpt.models.causal import CausalModel
from xraygpt.models.llm import llm_files
from xraygpt.models.llm import small_llm as language
from xraygpt.models.media_tokens import split_by_run
from xraygpt.models.qformer_llm import import_weights, qformer
from xraygpt.models.qformer_llm.pack import pack_parts
from xraygpt.models.qformer_llm.query_collator import QueryCollator
from xraygpt.models.tracing import cross_attentions, mean_of_layers
from xraygpt.models.vision import base as vision
from xraygpt.models.vision import encoders, finding_head
from xraygpt.processors.image import ImageSpec

log = logging.getLogger(__name__)


@registry.register_model("xraygpt", "mini_gpt4")
class XrayGPT(CausalModel):
    """Frozen vision encoder, Q-Former, linear layer, frozen LLM."""

    @dataclass(kw_only=True)
    class Config(CausalModel.Config):
        """Settings of the composition; presets are `tiny`, `nano`, `mini` and `pretrain_vicuna`."""

        vit_model: str = "eva_clip_g"
        """The vision encoder, by a name of `registry.list_encoders()`."""
        vit_ckpt: Path | None = None
        """The encoder's weights: a file, or a folder as downloaded."""
        vit_width: int | None = None
        """Width of pre-computed features; only with `vit_model: precomputed`."""
        vit_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
        """Of the vision encoder on a GPU; a CPU always computes in fp32."""
        vit_on_cpu: bool = False
        """Leave the frozen vision encoder on the CPU, where images are then encoded: its room on
        the GPU is saved. One process only."""
        image_size: int | None = None
        """Pixels, square; None takes the encoder's own."""
        num_query_token: int = 32
        """Tokens one image becomes."""
        qformer: qformer.QFormerConfig = field(default_factory=qformer.QFormerConfig)
        """Size of the Q-Former."""
        llama_model: str | None = None
        """The LLM: a transformers folder, a `.gguf` file, `package:<name>`, or a run of the task
        `language_modeling`; null makes a random one of size `llm`, for tests."""
        llm: language.SmallLLM = field(default_factory=language.SmallLLM)
        """Size of the random LLM; no effect with `llama_model`."""
        llm_dtype: llm_files.Dtype = "auto"
        """Of the LLM's weights; `auto` is bfloat16 with CUDA, float32 without."""
        llm_bits: llm_files.Bits | None = None
        """Pack the frozen LLM's weights in 8 or 4 bits, by bitsandbytes; null leaves them."""
        llm_device_map: str | None = None
        """`auto` spreads the LLM's layers over all GPUs and then memory; null keeps it whole."""
        llm_attention: llm_files.Attention | None = None
        """Kernels of the LLM's attention; null takes `sdpa` where its code knows that."""
        low_resource: bool = False
        """The lineage's name for `llm_bits: 8`."""
        lora: language.LoraSettings | None = None
        """Adapters in the LLM; null has none."""
        q_former_model: Path | None = None
        """A run with another LLM, or a file of BLIP-2, whose Q-Former this model begins with; the
        linear layer is new. No effect with a `ckpt` that holds a Q-Former."""
        finding_head: Path | None = None
        """What `python -m xraygpt.probe --save` fitted on the frozen encoder's features; a plan of
        `by: head` asks it. null has none."""
        freeze_vit: bool = True
        """Train no weight of the vision encoder."""
        freeze_qformer: bool = False
        """Train no weight of the Q-Former."""
        freeze_llm: bool = True
        """Train no weight of the LLM but LoRA's."""
        use_grad_checkpoint: bool = False
        """Recompute the LLM's activations backwards, for less memory."""
        max_txt_len: int | None = 160
        """Most tokens of an answer, its end included; longer ones lose their last words."""
        end_sym: str | None = None
        """Closes every answer; None takes the template's."""
        prompt_path: Path | None = None
        """Questions, one a line; one is drawn for each sample that brings none."""
        prompt_template: str = "none"
        """`xraygpt`, `vicuna_v1`, `legacy_train`, `legacy_chat`, `chat_template` (the tokenizer's),
        a text with one `{}`, or `none`: the image and the answer without a word around them, as in
        XrayGPT's first stage."""
        seed: int = 0
        """Of the random initial weights."""

        def __post_init__(self) -> None:
            width = self.vit_width is not None
            with Checks(self) as check:
                check.refuse(
                    width != (self.vit_model == "precomputed"),
                    "vit_width" if width else "vit_model",
                    "vit_model: precomputed and vit_width go together",
                    *("vit_model", "vit_width"),
                )
                check.at_least(1, "num_query_token")
                check.at_least(2, "max_txt_len")
                check.needs("freeze_vit", "vit_on_cpu", "finding_head", why="for frozen encoders")
                why = "packed weights cannot be trained"
                check.needs("freeze_llm", "llm_bits", "low_resource", why=why)
                check.needs("freeze_llm", "lora", why="an LLM is trained by LoRA or whole")
                fresh = self.freeze_qformer and self.qformer.new_cross_attention
                why = "would leave qformer.new_cross_attention at random"
                check.refuse(fresh, "freeze_qformer", why, "qformer")

    config: Config
    frozen_parts = ("llm.", "vision.")
    average_tokens: Tensor
    average_count: Tensor

    def __init__(self, config: Config, *, assets: Path | None = None, **_: Any) -> None:
        super().__init__(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._build(config)
        self.media_collator = QueryCollator(config.num_query_token)
        self.renderer = build_renderer(config, self.tokenizer, assets=assets)
        if not hasattr(self.qformer, "qformer"):  # a plug-in's own
            self.unsupported = {
                "maps": "what stands in its Q-Former's place has no cross-attention"
            }
        self.stores_queries = False  # whether features are the Q-Former's tokens

    def _build(self, config: Config) -> None:
        self.vision: vision.VisionEncoder | None = None
        width, patches = config.vit_width, None
        if width is None:
            self.vision = import_weights.vision_of(config)
            width = self.vision.width
            patches = None if self.vision.has_position else self.vision.num_tokens
            if config.freeze_vit:
                self.vision.freeze()
                known = config.vit_ckpt or config.ckpt or encoders.has_weights(config.vit_model)
                if not known:
                    log.warning(
                        "the vision encoder %s is frozen with random weights, so nothing can be "
                        "read from it: set model.vit_ckpt",
                        config.vit_model,
                    )
        self.finding_head = finding_head.load_configured_head(config.finding_head, self.vision)
        self.qformer = self.make_qformer(width, patches)
        if config.q_former_model is not None and config.ckpt is None:
            import_weights.take_qformer(self, config.q_former_model)
        self.qformer.requires_grad_(not config.freeze_qformer)
        if config.qformer.adapter is not None:
            self.qformer.get_submodule("adapter").requires_grad_(True)
        if config.llama_model is None:
            self.tokenizer: Any = language.new_tokenizer([], 260)
            self.llm: Any = language.new_llm(config.llm, self.tokenizer, config.seed)
        else:
            dtype = config.llm_dtype
            if dtype == "auto" and not config.freeze_llm:
                dtype = "float32"  # AdamW's small updates vanish in bfloat16 weights
            bits = config.llm_bits or (8 if config.low_resource else None)
            self.llm, self.tokenizer = llm_files.load_llm(
                config.llama_model,
                dtype,
                bits=bits,
                device_map=config.llm_device_map,
                attention=config.llm_attention,
            )
        self._parts = {
            "llm": language.digest(self.llm),
            **import_weights.run_digest(config, self.vision),
        }
        self.llm.requires_grad_(not config.freeze_llm)
        if config.lora is not None:
            language.add_lora(self.llm, config.lora)
        if config.use_grad_checkpoint:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})
        self.proj = nn.Linear(config.qformer.hidden, self.llm.config.hidden_size)
        self._match_embeddings()
        average = torch.zeros(config.num_query_token, self.proj.out_features)
        self.register_buffer("average_tokens", average)  # of the images trained on, lately
        self.register_buffer("average_count", torch.zeros(()))
        self.context_len: int = self.llm.config.max_position_embeddings

    def make_qformer(self, width: int, patches: int | None) -> nn.Module:
        """What makes tokens of features; plug-ins may put another module here.

        Args:
            width: D of the features.
            patches: Features of an image, if the encoder does not say where each comes from.

        Returns:
            A module that maps (N, L, D) features and their (N, L) mask, or None, to
            (N, `num_query_token`, `qformer.hidden`).
        """
        return qformer.QFormer(
            self.config.qformer,
            vision_width=width,
            num_patches=patches,
            num_query_token=self.config.num_query_token,
        )

    @torch.no_grad()
    def _match_embeddings(self) -> None:
        """Begin with image tokens as large as the LLM's own.

        Larger ones drown what its layers add to them and shrink the gradient through its norms, so
        that a Q-Former from scratch learns many times slower.
        """
        embedding = self.llm.get_input_embeddings().weight.float()
        size = float(embedding.pow(2).mean().sqrt())
        nn.init.normal_(self.proj.weight, std=size / self.proj.in_features**0.5)
        nn.init.zeros_(self.proj.bias)

    @property
    def image_spec(self) -> ImageSpec:  # type: ignore[override]
        """What the encoder wants; for pre-computed features only the token count means anything."""
        count = self.config.num_query_token
        if self.vision is None:
            return ImageSpec(image_size=224, mean=(0.5,), std=(0.5,), tokens_per_image=count)
        input_spec = vars(self.vision.input_spec)
        return ImageSpec(**input_spec, tokens_per_image=count)

    def train(self, mode: bool = True) -> Self:
        """As torch's, except that frozen parts stay in evaluation mode: no dropout in them."""
        super().train(mode)
        if self.config.freeze_qformer:
            self.qformer.eval()
        if self.config.freeze_llm and not self.config.use_grad_checkpoint:
            self.llm.eval()
            for name, module in self.llm.named_modules():
                if name.endswith("lora_dropout"):
                    module.train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As torch's, which moves and casts; what has been given a place stays there."""
        stays = ["llm"] if self.config.llm_device_map else []
        stays += ["vision"] if self.config.vit_on_cpu and self.vision is not None else []
        held = {name: self._modules[name] for name in stays}
        for name in stays:
            self._modules[name] = None
        try:
            return super()._apply(fn, recurse)
        finally:
            self._modules.update(held)

    @property
    def device(self) -> torch.device:
        """Where it computes, but for an encoder with `vit_on_cpu`."""
        return self.proj.weight.device

    def no_weight_decay(self) -> tuple[str, ...]:
        """The Q-Former's queries."""
        return ("query_tokens",)

    def merge_lora(self) -> None:
        """LoRA becomes part of the LLM's weights, where these are plain and in one place."""
        llm_files.set_4bit_cpu_kernel(self.llm, True)
        if self.config.lora is not None and self.config.llm_device_map is None:
            language.merge_lora_weights(self.llm)

    def embed(self, batch: Batch, tokens: Sequence[Tensor] | None = None) -> Tensor:
        """As of every causal model; in training all parts are touched, also without an image."""
        embeds = super().embed(batch, tokens)
        if tokens is None and not batch["media_inputs"] and self.training:
            # All ranks must touch the same parameters.
            unused = 0 * self.image_tokens(**self._dummy(embeds)).sum()
            return embeds + unused.to(embeds.dtype)
        return embeds

    def embed_average(self, batch: Batch) -> Tensor | None:
        """As `embed`, with the average training image in every image's place; None without one."""
        if not self.average_count and batch["media_inputs"]:
            return None
        each = self.config.num_query_token
        average = [self.average_tokens.repeat(r.length // each, 1) for r in batch["runs"]]
        return self.embed(batch, average)

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        """(L, H) of each medium of a batch, in the order of its runs."""
        tokens = self.image_tokens(**batch["media_inputs"], **self.reading(batch))
        self._note_average(tokens)
        return split_by_run(tokens, batch, self.config.num_query_token)

    @torch.no_grad()
    def traced_tokens(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Of each medium its tokens, and how much each looked at each feature of the encoder."""
        each = self.config.num_query_token
        qformer: Any = self.qformer
        with cross_attentions(qformer.qformer) as layers:
            tokens = self.media_tokens(batch)
        shares = mean_of_layers(layers)[:, :each]
        frames = [run.length // each for run in batch["runs"]]
        return list(zip(tokens, shares.split(frames), strict=True))

    def reading(self, batch: Batch) -> dict[str, Tensor]:
        """What the Q-Former takes beside the images of a batch; by default nothing."""
        return {}

    @torch.no_grad()
    def _note_average(self, tokens: Tensor) -> None:
        """Keep a running mean of training images' (N, Q, H) tokens, over about 100 batches."""
        if self.training:
            self.average_count += 1
            weight = (1 / self.average_count).clamp(min=0.01)
            self.average_tokens.lerp_(tokens.float().mean(dim=0), weight)

    def image_tokens(
        self,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        feature_mask: Tensor | None = None,
        **reading: Tensor,
    ) -> Tensor:
        """(N, C, H, W) pixels, or (N, L, D) features with their (N, L) mask -> (N, Q, H).

        `reading` is what the Q-Former takes beside them.
        """
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        elif self.stores_queries:
            stored: Tensor = self.proj(features)
            return stored
        tokens: Tensor = self.proj(self.qformer(features, feature_mask, **reading))
        return tokens

    def encode(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D), without gradient if the encoder is frozen."""
        if self.vision is None:
            raise ValueError("vit_model is precomputed: the corpus must hold .npy features")
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.config.vit_precision)
        place = pixel_values.device
        if self.config.vit_on_cpu:
            pixel_values = pixel_values.cpu()
        lower = half is not None and pixel_values.is_cuda
        with (
            torch.no_grad() if self.config.freeze_vit else contextlib.nullcontext(),
            torch.autocast("cuda", half) if lower else contextlib.nullcontext(),
        ):
            return self.vision.encode(pixel_values).float().to(place)

    @torch.no_grad()
    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D) float32, for the feature cache."""
        features = self.encode(pixel_values)
        return (self.qformer(features, None) if self.stores_queries else features).float()

    def start_caching_queries(self) -> str | None:
        """With a frozen Q-Former its tokens are stored: fewer and narrower than the encoder's."""
        key = self.feature_key()
        whole = self.config.freeze_qformer and self.config.qformer.adapter is None
        if key is not None and whole and not self.reads_question:
            self.stores_queries = True
            self.qformer.eval()
            key = f"{key} queries {vision.weights_digest(self.qformer)}"
        return key

    def feature_key(self) -> str | None:
        """Hash of the frozen encoder's weights; None if it is trained or absent."""
        if self.vision is None or not self.config.freeze_vit:
            return None
        on_gpu = torch.cuda.is_available() and not self.config.vit_on_cpu
        precision = self.config.vit_precision if on_gpu else "fp32"
        return f"{self.config.vit_model} {precision} {self.vision.digest()}"

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Q-Former and projection always; LLM and encoder only as far as they are trained."""
        trained = {name for name, _ in self.trainable_parameters()}
        buffers = (
            {name for name, _ in self.named_buffers()} if not self.config.freeze_vit else set()
        )
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(("qformer.", "proj.", "average_"))
            or name in trained
            or name in self.loaded_keys
            or (name in buffers and name.startswith("vision."))
        }

    def save_assets(self, folder: Path) -> None:
        """Note which LLM and which words around images and answers the weights belong to."""
        super().save_assets(folder)
        (folder / import_weights.PARTS).write_text(
            json.dumps(self._described(), indent=1), encoding="utf-8"
        )

    def check_assets(self, folder: Path) -> None:
        """Refuse another LLM or encoder of a run; warn of another template, ending or LoRA scale.

        Raises:
            WeightsError: The checkpoint was trained with another LLM or encoder.
        """
        if not (folder / import_weights.PARTS).is_file():
            return
        saved, own = (
            json.loads((folder / import_weights.PARTS).read_text(encoding="utf-8")),
            self._described(),
        )
        if saved["llm"] != own["llm"]:
            raise WeightsError(
                f"{folder} was trained with another LLM than model.llama_model "
                f"({self.config.llama_model}); its weights mean nothing to this one. If it was "
                "trained anew since, train this model anew, or point llama_model to the old run"
            )
        import_weights.check_encoder(folder, {k: v for k, v in own.items() if k == "vision"})
        other = [key for key in own if saved.get(key) != own[key]]
        if other:
            log.warning(
                "%s was trained with %s",
                folder,
                ", ".join(f"{k} {saved.get(k)!r} (here {own[k]!r})" for k in other),
            )

    def pack_into(self, state: dict[str, Tensor], folder: Path, out: Path) -> Config:
        """As of every model, with the encoder, LLM and finding head that were trained here."""
        packed: XrayGPT.Config = pack_parts(self, state, folder, out)
        return packed

    def export_layouts(self) -> tuple[str, ...]:
        """The lineage's file, and transformers' BLIP-2."""
        return ("pth", "transformers")

    def export(self, layout: str, out: Path, how: ExportSettings) -> str:
        """Write it as others keep such models.

        Raises:
            WeightsError: The layout has no place for a part of it; says which.
        """
        from xraygpt.models.qformer_llm.export import to_pth, to_transformers

        return (to_pth if layout == "pth" else to_transformers)(self, out, how)

    def facts(self) -> dict[str, str]:
        """Its encoder and its language model."""
        llm = Path(self.config.llama_model or "random, for tests").name
        return {"vision encoder": self.config.vit_model, "LLM": llm}

    def parts(self) -> dict[str, str]:
        """Digests of the LLM as it was before any checkpoint, and of the finding head."""
        head = self.finding_head
        return {**self._parts, **({} if head is None else {"finding_head": head.digest()})}

    def _described(self) -> dict[str, Any]:
        lora = self.config.lora
        return {
            **self._parts,
            "vit_model": self.config.vit_model,
            "prompt_template": self.config.prompt_template,
            "end_sym": self.renderer.end_sym,
            "lora_alpha": lora.alpha if lora else None,
        }

    def convert_state(
        self, state: dict[str, Tensor], source: Path
    ) -> tuple[dict[str, Tensor], set[str]] | None:
        """Weights of XrayGPT, MiniGPT-4 or LAVIS: whole parts, or none of a part."""
        return import_weights.foreign_state(self, state, source)

    def fresh_keys(self) -> tuple[str, ...]:
        """LoRA begins as no change; the lineage's weights know no average image."""
        return ("lora_", "average_")

    def _dummy(self, like: Tensor) -> dict[str, Tensor]:
        """One black image, or one empty feature, for a training batch without any."""
        if self.vision is not None and not self.config.freeze_vit:
            input_spec = self.vision.input_spec
            shape = (1, input_spec.channels, input_spec.image_size, input_spec.image_size)
            return {"pixel_values": torch.zeros(shape, device=like.device)}
        width = self.config.vit_width or self.vision.width  # type: ignore[union-attr]
        length = self.vision.num_tokens if self.vision is not None else 1
        if self.stores_queries:
            width, length = self.config.qformer.hidden, self.config.num_query_token
        return {"features": torch.zeros(1, length, width, device=like.device)}
