"""Trains a vision encoder on pairs of images and reports, like MedCLIP and CLIP.

An encoder and a small text tower embed images and reports in a shared space, and linear heads
classify findings and codes. The task `image_text_contrastive` defines the losses. The encoder can
then be used as ``vit_model: run/<folder of this run>``.

Notation: B rows, R rows with an image, N images in the batch, L patch tokens, F findings, K codes,
T text tokens; D is the encoder's width and E the width of the shared space.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init
from transformers import BertConfig, BertModel

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.project_paths import EncoderName, ProjectPath
from xraygpt.common.registry import VOCABULARIES, registry
from xraygpt.common.requirements import Missing, missing_encoder
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch
from xraygpt.models import param_groups
from xraygpt.models.base import BaseModel, TextSource, build_renderer
from xraygpt.models.llm.small_llm import check_tokenizer, new_tokenizer
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.qformer_llm.query_collator import QueryCollator
from xraygpt.models.text_assets import saved_tokenizer
from xraygpt.models.vision import encoders
from xraygpt.models.vision.base import pooled
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import IGNORE_INDEX
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.questions import BOTH, NOT_CODED


@dataclass
class Pair:
    """Embeddings and logits for a batch of images and texts."""

    image: Tensor  # (R, E) float32, of length 1
    text: Tensor  # (B, E) float32, of length 1
    rows: Tensor  # (R,) int64, indices of rows with an image
    findings: Tensor  # (R, F) float32, logits
    codes: Tensor  # (R, K) float32, logits
    code_ids: Tensor  # (K,) int64, see `code_id`
    code_weight: Tensor  # (K,) float32, the weight of positive examples in the loss
    scale: Tensor  # (), the factor on cosine similarities, which is the inverse temperature


@dataclass(kw_only=True)
class TextTower:
    """A small BERT with a tokenizer trained on the training texts."""

    vocab_size: int = 2048
    """Vocabulary size of the byte-level BPE tokenizer."""
    hidden: int = 256
    """Width, a multiple of the attention heads' 64."""
    layers: int = 2
    """Number of transformer layers."""
    context: int = 256
    """Maximum length of a text in tokens."""
    dropout: float = 0.1
    """Dropout rate for attention and hidden states, in [0, 1)."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.refuse(self.hidden % 64, "hidden", f"must be a multiple of 64, got {self.hidden}")
            check.fraction_below_one("dropout")


@registry.register_model("image_text", "medclip")
class ImageText(BaseModel):
    """A vision encoder and a text tower with a shared embedding space."""

    @dataclass(kw_only=True)
    class Config(BaseModel.Config):
        """Settings for the two towers."""

        vit_model: EncoderName = "timm/vit_small_patch16_224"
        """The encoder to train, with the same names as in `arch: xraygpt`."""
        vit_ckpt: ProjectPath | None = None
        """Initial weights; null uses the encoder's own weights, or random weights."""
        image_size: int | None = None
        """Size in pixels; None uses the encoder's default."""
        train_from: int = 0
        """First trained block of the encoder; earlier blocks and the stem are frozen."""
        text: TextTower = field(default_factory=TextTower)
        """Size of the text tower."""
        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Vocabulary for the findings head; it must be the same as in `run.task`."""
        min_code_count: int = 12
        """Minimum number of training samples that a coded heading, alone or with a side or
        location, needs to get an output."""
        embed_dim: int = 256
        """Width E of the shared space."""
        dropout: float = 0.2
        """Dropout rate for the pooled features before all heads, in [0, 1)."""
        temperature: float = 0.07
        """Initial value of the trained temperature, by which cosine similarities are divided."""
        max_txt_len: int | None = 200
        """Maximum length of a report in tokens; longer reports are truncated."""
        prompt_template: str = "none"
        """Template for texts. Text around a report has no effect, so `none` is recommended."""
        prompt_path: ProjectPath | None = None
        """Has no effect."""
        end_sym: str | None = None
        """End of every text; None uses the template's."""
        seed: int = 0
        """Seed of the random initial weights."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.fraction_below_one("dropout")
                check.above(0, "temperature")

        def missing(self, where: str) -> list[Missing]:
            """List the encoder's folder and the files that do not exist."""
            return missing_encoder(f"{where}.vit_model", self.vit_model) + super().missing(where)

    config: Config

    def __init__(
        self,
        config: Config,
        *,
        texts: TextSource = list,
        codes: Callable[[], Sequence[Sequence[str]]] = list,
        assets: Path | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        self.tokenizer = saved_tokenizer(assets) or new_tokenizer(texts(), config.text.vocab_size)
        names, frequency = frequent_codes(codes(), config.min_code_count)
        self.code_ids: Tensor
        self.code_weight: Tensor
        self.register_buffer("code_ids", torch.tensor([code_id(n) for n in names]).long())
        # Positives of rare codes are weighted by the root of negatives per positive, at most 10.
        weight = ((1 - frequency) / frequency.clamp(min=1e-6)).clamp(1, 100).sqrt()
        self.register_buffer("code_weight", weight)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.vision = encoders.build_vision(
                config.vit_model, config.image_size, config.vit_ckpt
            )
            self.text = BertModel(_bert(config.text, len(self.tokenizer)), add_pooling_layer=False)
            width = 2 * self.vision.width
            self.norm = nn.BatchNorm1d(width)
            self.drop = nn.Dropout(config.dropout)
            self.image_proj = nn.Linear(width, config.embed_dim, bias=False)
            self.text_proj = nn.Linear(config.text.hidden, config.embed_dim, bias=False)
            self.head = nn.Linear(width, len(get_vocabulary(config.vocabulary).findings))
            self.code_head = skip_init(nn.Linear, width, len(names))
            if names:
                self.code_head.reset_parameters()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.frozen = _frozen_parts(self.vision.net, config.train_from)
        for part in self.frozen:
            part.requires_grad_(False)
        self.media_collator = QueryCollator(1)
        self.context_len = config.text.context
        self.renderer = build_renderer(config, self.tokenizer, assets=assets)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the trained matrices except the shared-space projections and the classifiers."""
        heads = (self.image_proj, self.text_proj, self.head, self.code_head)
        return param_groups.hidden_matrices(self, heads)

    @property
    def image_spec(self) -> ImageSpec:  # type: ignore[override]
        """The encoder's requirements for images."""
        return ImageSpec(**vars(self.vision.input_spec), tokens_per_image=1)

    def train(self, mode: bool = True) -> ImageText:
        """Set the mode; frozen parts stay in evaluation mode and keep their running statistics."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, batch: Batch, return_logits: bool = False) -> Any:
        """Compute the `Pair` of a batch.

        Raises:
            DataError: The batch contains precomputed features instead of pixels.
        """
        if "features" in batch["media_inputs"]:
            raise DataError("training an encoder requires images, not precomputed features")
        counts = torch.tensor(images_per_row(batch), device=batch["input_ids"].device)
        rows = counts.nonzero().flatten()
        pixels = batch["media_inputs"].get("pixel_values")
        if pixels is None:  # texts only: there are no pairs, but every parameter needs a gradient
            size = self.vision.image_size
            pixels = self.text_proj.weight.new_zeros(1, self.vision.input_spec.channels, size, size)
        features = pooled(self.vision.encode(pixels)).float()
        owner = torch.repeat_interleave(torch.arange(len(counts), device=features.device), counts)
        if not len(owner):
            owner = features.new_zeros(len(features), dtype=torch.long)
            rows = owner[:0]
        sums = features.new_zeros(len(counts), features.shape[1]).index_add(0, owner, features)
        mean = (sums / counts.clamp(min=1).unsqueeze(1))[rows] if len(rows) else features[:0]
        mean = self.drop(self._normalise(mean))
        return Pair(
            image=functional.normalize(self.image_proj(mean).float(), dim=-1),
            text=self.encode_text(batch),
            rows=rows,
            findings=self.head(mean).float(),
            codes=self.code_head(mean).float(),
            code_ids=self.code_ids,
            code_weight=self.code_weight,
            scale=self.log_scale.clamp(max=math.log(100)).exp(),
        )

    def _normalise(self, mean: Tensor) -> Tensor:
        """Normalise (R, 2 D) features, with running statistics if there are fewer than two rows."""
        norm = self.norm
        if self.training and len(mean) > 1:
            return norm(mean)
        assert norm.running_mean is not None and norm.running_var is not None
        scaled = (mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        return scaled * norm.weight + norm.bias

    def encode_text(self, batch: Batch) -> Tensor:
        """Embed the answers' (B, T) ids as (B, E)."""
        mask = batch["labels"] != IGNORE_INDEX
        mask[:, 0] |= ~mask.any(dim=1)  # rows that only pad the batch
        ids = batch["input_ids"].clamp(min=0)
        hidden = self.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        weight = mask.unsqueeze(-1).float()
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return functional.normalize(self.text_proj(mean).float(), dim=-1)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return all weights and buffers."""
        return dict(self.state_dict())

    def check_assets(self, folder: Path) -> None:
        """Check that the tokenizer is the one that a checkpoint was trained with.

        Raises:
            WeightsError: The tokenizers differ because the corpus has changed.
        """
        check_tokenizer(folder, self.tokenizer)

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer and the prompts."""
        super().save_assets(folder)
        self.tokenizer.save_pretrained(folder)


def code_parts(codes: Iterable[str]) -> set[str]:
    """Split codes into headings and headings with a side or location: ``opacity/left``.

    A bilateral finding yields both sides.
    """
    parts: set[str] = set()
    for code in codes:
        heading, *qualifiers = (part.strip().lower() for part in code.split("/"))
        if not heading or heading in NOT_CODED:
            continue
        parts.add(heading)
        for qualifier in qualifiers:
            locations = ("left", "right") if qualifier == BOTH else (qualifier,)
            parts |= {f"{heading}/{location}" for location in locations}
    return parts


def code_id(part: str) -> int:
    """Return a positive integer that represents a code part in tensors: 62 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "big") >> 2 or 1


def frequent_codes(coded: Sequence[Sequence[str]], min_count: int) -> tuple[list[str], Tensor]:
    """Return code parts with at least `min_count` samples, and their share of coded samples."""
    samples = [parts for parts in map(code_parts, coded) if parts]
    counts = Counter(part for parts in samples for part in parts)
    names = sorted(part for part, n in counts.items() if n >= min_count)
    return names, torch.tensor([counts[n] / len(samples) for n in names]).float()


def _bert(size: TextTower, vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=size.context,
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=size.dropout,
    )


def _frozen_parts(net: nn.Module, train_from: int) -> list[nn.Module]:
    """Return the parts before block `train_from`.

    Raises:
        InputError: The network has no blocks, or fewer blocks than that.
    """
    if train_from == 0:
        return []
    net = getattr(net, "inner", net)
    blocks = getattr(net, "blocks", None)
    if blocks is None or train_from > len(blocks):
        reason = "has no blocks" if blocks is None else f"has {len(blocks)} blocks"
        raise InputError(f"model.train_from: {train_from}, but this encoder {reason}")
    stem = []
    for name, part in net.named_children():
        if name == "blocks":
            break
        stem.append(part)
    return [*stem, *blocks[:train_from]]
