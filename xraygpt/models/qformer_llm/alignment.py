"""Pretrains a Q-Former on image–text pairs, as in BLIP-2's first stage (Li et al. 2023).

The queries learn to extract from the frozen encoder what reports describe. Two of BLIP-2's
losses are used: contrast, which compares an image with the texts in a batch, and matching, which
distinguishes pairs from hard negatives (after ALBEF, Li et al. 2021). BLIP-2's third loss,
generation, is the LLM's own loss in the next stage, which loads this run with
``model.q_former_model``.

Notation: B rows, R of them with an image, L patch tokens, Q queries, T text tokens; D is the
encoder's width, K the Q-Former's width, E the width of the shared space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import EncoderName
from xraygpt.common.registry import registry
from xraygpt.common.requirements import FrozenParts
from xraygpt.datasets.base import Batch
from xraygpt.models import param_groups
from xraygpt.models.base import BaseModel, TextSource, build_renderer
from xraygpt.models.llm.small_llm import check_tokenizer, new_tokenizer
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.qformer_llm import assets as model_assets
from xraygpt.models.qformer_llm.build import build_encoder, frozen_parts
from xraygpt.models.qformer_llm.instruct import TextQFormer
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.models.qformer_llm.query_collator import QueryCollator
from xraygpt.models.text_assets import saved_tokenizer
from xraygpt.models.text_config import TextConfig
from xraygpt.models.vision.config import EncoderConfig
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import IGNORE_INDEX


@dataclass
class Aligned:
    """Result of a forward pass.

    Attributes:
        similarity: (R, B) float32, the highest cosine of an image's queries with each text.
        rows: (R,) int64, the rows that have an image.
        scale: (), the factor on cosines, which is the inverse temperature.
        matched: (R, 3) float32, the logits that image and text belong together: for the true pair,
            with a wrong text, and with a wrong image.
    """

    similarity: Tensor
    rows: Tensor
    scale: Tensor
    matched: Tensor


@dataclass(kw_only=True)
class AlignedEncoder(EncoderConfig):
    """The vision encoder; the default encoder is small."""

    encoder: EncoderName = "efficientnet_lite0"


@registry.register_model("qformer_alignment", "blip2_qformer")
class QFormerAlignment(BaseModel):
    """A frozen vision encoder, and a Q-Former that reads texts as well as images."""

    @dataclass(kw_only=True)
    class Config(BaseModel.Config):
        """Settings of the encoder and Q-Former, which must match those in the next stage."""

        vision: AlignedEncoder = field(default_factory=AlignedEncoder)
        """The frozen encoder; any that `arch: xraygpt` accepts except `precomputed`."""
        qformer: QFormerConfig = field(default_factory=QFormerConfig)
        text: TextConfig = field(default_factory=TextConfig)
        """`max_txt_len` truncates reports; `prompt_path` has no effect."""
        vocab_size: int = 2048
        """Vocabulary size of the byte-level BPE tokenizer trained on the training reports."""
        embed_dim: int = 256
        """Width E of the space in which images and texts are compared."""
        temperature: float = 0.07
        """Initial value of the learned temperature, by which cosine similarities are divided."""
        seed: int = 0
        """Seed of the random initial weights."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.above(0, "temperature")

        def required_weights(self) -> FrozenParts | None:
            """Return the encoder, which is always frozen."""
            return frozen_parts(self.vision, self.ckpt)

    config: Config
    context_len = 512  # position embeddings of the Q-Former's text

    def __init__(
        self, config: Config, *, texts: TextSource = list, assets: Path | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.tokenizer = saved_tokenizer(assets) or new_tokenizer(texts(), config.vocab_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.vision = build_encoder(config.vision).freeze()
            self.qformer = TextQFormer(
                config.qformer,
                vocab_size=len(self.tokenizer),
                vision_width=self.vision.width,
                num_patches=None if self.vision.has_position else self.vision.num_tokens,
            )
            width = config.qformer.hidden
            self.image_proj = nn.Linear(width, config.embed_dim)
            self.text_proj = nn.Linear(width, config.embed_dim)
            self.match_head = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.media_collator = QueryCollator(1)
        self.renderer = build_renderer(config.text, self.tokenizer, assets=assets)

    def no_weight_decay(self) -> tuple[str, ...]:
        """Return the name of the Q-Former's queries."""
        return ("query_tokens",)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the trained matrices except the shared-space projections and the matching head."""
        heads = (self.image_proj, self.text_proj, self.match_head)
        return param_groups.hidden_matrices(self, heads)

    @property
    def image_spec(self) -> ImageSpec:  # type: ignore[override]
        """The input size and normalization that the encoder requires."""
        return ImageSpec(**vars(self.vision.input_spec), tokens_per_image=1)

    def forward(self, batch: Batch, return_logits: bool = False) -> Any:
        """Compute an `Aligned`: similarities of all pairs, and matching logits.

        Only the first image of a row is used. Hard negatives are sampled by similarity from the
        rows with other findings (`extra.findings`), or from all other rows if there are none.
        """
        ids, mask = self._texts(batch)
        patches, patch_mask, rows = self._patches(batch)
        queries = self.qformer(patches, patch_mask)
        image = functional.normalize(self.image_proj(queries).float(), dim=-1)  # (R, Q, E)
        text_states = self.qformer.qformer(input_ids=ids, attention_mask=mask).last_hidden_state
        text = functional.normalize(self.text_proj(text_states[:, 0]).float(), dim=-1)  # (B, E)
        with torch.autocast(image.device.type, enabled=False):  # small differences matter
            similarity = torch.einsum("rqe,be->rbq", image, text).amax(dim=2)
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        with torch.no_grad():
            other_text, other_image = self._negatives(similarity * scale, rows, batch)
        pairs = [
            (torch.arange(len(rows), device=rows.device), rows),
            (torch.arange(len(rows), device=rows.device), other_text),
            (other_image, rows),
        ]
        images, texts = (torch.cat(side) for side in zip(*pairs, strict=True))
        masks = None if patch_mask is None else patch_mask[images]
        joint = self.qformer(patches[images], masks, text_ids=ids[texts], text_mask=mask[texts])
        logits = self.match_head(joint).mean(dim=1).float()  # over queries, as in BLIP-2
        return Aligned(similarity, rows, scale, logits.view(3, -1).T)

    def _texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the answers' (B, T) ids and mask, after a first token that represents the text."""
        is_answer = batch["labels"] != IGNORE_INDEX
        width = int(is_answer.sum(dim=1).max()) + 1
        ids = batch["input_ids"].new_full((len(is_answer), width), self.tokenizer.bos_token_id or 0)
        mask = torch.zeros_like(ids)
        mask[:, 0] = 1
        for row, selected in enumerate(is_answer):
            tokens = batch["input_ids"][row][selected]
            ids[row, 1 : 1 + len(tokens)], mask[row, 1 : 1 + len(tokens)] = tokens, 1
        return ids, mask

    def _patches(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return (R, L, D) tokens of each row's first image, their mask, and the (R,) rows."""
        counts = torch.tensor(images_per_row(batch), device=batch["input_ids"].device)
        rows = counts.nonzero().flatten()
        inputs = batch["media_inputs"]
        if "features" in inputs:
            tokens, mask = inputs["features"], inputs.get("feature_mask")
        elif "pixel_values" in inputs:
            tokens, mask = self.encode_frozen(inputs["pixel_values"]), None
        else:  # texts only; DDP still needs gradients for all parameters
            shape = (1, self.vision.num_tokens, self.vision.width)
            return self.match_head.weight.new_zeros(shape), None, rows.new_zeros(1)
        first = (counts.cumsum(dim=0) - counts)[rows]
        return tokens[first], None if mask is None else mask[first], rows

    def _negatives(self, logits: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Choose a wrong text's row and a wrong image's index for each image, both (R,)."""
        own = torch.zeros_like(logits, dtype=torch.bool)
        own[torch.arange(len(rows)), rows] = True
        findings = batch["extra"].get("findings")
        same = own.clone()
        if findings is not None:
            findings = findings.to(logits.device)
            same |= (findings[rows].unsqueeze(1) == findings.unsqueeze(0)).all(dim=2)
        return (
            _sample_negatives(logits, same, own, self.training),
            _sample_negatives(logits[:, rows].T, same[:, rows].T, own[:, rows].T, self.training),
        )

    @torch.no_grad()
    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """Encode (N, C, H, W) images as (N, L, D) float32 features for the feature cache."""
        return self.vision.encode(pixel_values).float()

    def feature_key(self) -> str | None:
        """Return a key with a hash of the frozen encoder's weights."""
        return f"{self.config.vision.encoder} fp32 {self.vision.digest()}"

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return all weights except the frozen encoder's."""
        return {n: t for n, t in self.state_dict().items() if not n.startswith("vision.")}

    def check_assets(self, folder: Path) -> None:
        """Check that the tokenizer and the encoder are those the weights were trained with.

        Raises:
            WeightsError: The corpus or the encoder has changed since.
        """
        check_tokenizer(folder, self.tokenizer)
        model_assets.check_encoder(folder, self._encoder_digest())

    def _encoder_digest(self) -> dict[str, str]:
        return model_assets.encoder_digest(self.config.vision.encoder, self.vision, frozen=True)

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer and the encoder's name."""
        super().save_assets(folder)
        self.tokenizer.save_pretrained(folder)
        parts = {"vit_model": self.config.vision.encoder, **self._encoder_digest()}
        model_assets.write_parts(folder, parts)


def _sample_negatives(logits: Tensor, same: Tensor, own: Tensor, training: bool = True) -> Tensor:
    """Choose a column for each row of (R, C) similarities, never the row's own pair.

    In training, columns are sampled in proportion to their softmax; in evaluation the most similar
    column is chosen, so that the loss is reproducible.
    """
    none_left = same.all(dim=1, keepdim=True)
    excluded = torch.where(none_left, own, same)
    weight = logits.softmax(dim=1).masked_fill(excluded, 0) + 1e-6 * (~excluded)
    alone = excluded.all(dim=1, keepdim=True)  # a batch of one, whose loss is not used
    weight = torch.where(alone, own.float(), weight)
    return torch.multinomial(weight, 1).squeeze(1) if training else weight.argmax(dim=1)
