"""Image and text in one space: makes a vision encoder out of pairs, as MedCLIP and CLIP do.

An encoder and a small text tower each become one vector of a picture and of a report; beside them a
head says which findings a picture shows. The losses are the task's (`image_text_contrastive`).
Afterwards the encoder is used, frozen, as ``vit_model: run/<folder of this run>``.

Notation: B rows, N images of the batch, L patch tokens, D the encoder's width, E the shared space,
F findings, T text tokens.
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
from xraygpt.common.registry import VOCABULARIES, registry
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch
from xraygpt.models import param_groups
from xraygpt.models.base import BaseModel, Texts, renderer_of
from xraygpt.models.llm.small_llm import check_tokenizer, new_tokenizer
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.qformer_llm.query_collator import QueryCollator
from xraygpt.models.text_assets import saved_tokenizer
from xraygpt.models.vision import encoders
from xraygpt.models.vision.base import pooled
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import IGNORE_INDEX
from xraygpt.vocabulary import vocabulary_of
from xraygpt.vocabulary.questions import BOTH, NOT_CODED


@dataclass
class Pair:
    """Both sides of a batch."""

    image: Tensor  # (R, E) float32, of length 1; R rows that have an image
    text: Tensor  # (B, E) float32, of length 1
    rows: Tensor  # (R,) int64, which rows have one
    findings: Tensor  # (R, F) float32, logits of the head
    codes: Tensor  # (R, K) float32, logits of the codes
    code_ids: Tensor  # (K,) int64, which code each is; see `code_id`
    code_weight: Tensor  # (K,) float32, how much its presence counts in the loss
    scale: Tensor  # () what cosines are multiplied by: one over the temperature


@dataclass(kw_only=True)
class TextTower:
    """A small BERT with a tokenizer learned from the training texts."""

    vocab_size: int = 2048
    """Entries of the byte-level BPE tokenizer."""
    hidden: int = 256
    """Width; heads are 64 wide."""
    layers: int = 2
    """Transformer layers."""
    context: int = 256
    """Most tokens of a text."""
    dropout: float = 0.1
    """Of attention and of hidden states, in [0, 1)."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.refuse(self.hidden % 64, "hidden", f"must be a multiple of 64, got {self.hidden}")
            check.share_below_one("dropout")


@registry.register_model("image_text", "medclip")
class ImageText(BaseModel):
    """A trained vision encoder beside a text tower."""

    @dataclass(kw_only=True)
    class Config(BaseModel.Config):
        """Settings of the two towers."""

        vit_model: str = "timm/vit_small_patch16_224"
        """The encoder to train; any name that `arch: xraygpt` takes."""
        vit_ckpt: Path | None = None
        """Weights it begins with; null takes its own, or random ones."""
        image_size: int | None = None
        """Pixels; None takes the encoder's own."""
        train_from: int = 0
        """Blocks of the encoder before this one, and its stem, keep their weights."""
        text: TextTower = field(default_factory=TextTower)
        """Size of the text tower."""
        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Findings that get an output each; that of `run.task` must be the same."""
        min_code_count: int = 12
        """A coded heading, alone and with each side and place, gets an output of its own if at
        least so many training samples have it."""
        embed_dim: int = 256
        """Width E of the shared space."""
        dropout: float = 0.2
        """Of the pooled features before both heads, in [0, 1)."""
        temperature: float = 0.07
        """Cosines are divided by it; where training begins, for it is learned."""
        max_txt_len: int | None = 200
        """Most tokens of a report; longer ones lose their last words."""
        prompt_template: str = "none"
        """Words around a report are not read, so `none` is right."""
        prompt_path: Path | None = None
        """No effect."""
        end_sym: str | None = None
        """Closes every text; None takes the template's."""
        seed: int = 0
        """Of the random initial weights."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.share_below_one("dropout")
                check.above(0, "temperature")

    config: Config

    def __init__(
        self,
        config: Config,
        *,
        texts: Texts = list,
        codes: Callable[[], Sequence[Sequence[str]]] = list,
        assets: Path | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        self.tokenizer = saved_tokenizer(assets) or new_tokenizer(texts(), config.text.vocab_size)
        names, share = frequent_codes(codes(), config.min_code_count)
        self.code_ids: Tensor
        self.code_weight: Tensor
        self.register_buffer("code_ids", torch.tensor([code_id(n) for n in names]).long())
        # Rare ones would hardly be learned: the root of no's per yes, at most 10.
        weight = ((1 - share) / share.clamp(min=1e-6)).clamp(1, 100).sqrt()
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
            self.head = nn.Linear(width, len(vocabulary_of(config.vocabulary).findings))
            self.code_head = skip_init(nn.Linear, width, len(names))
            if names:
                self.code_head.reset_parameters()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.kept = _fixed_parts(self.vision.net, config.train_from)
        for part in self.kept:
            part.requires_grad_(False)
        self.media_collator = QueryCollator(1)
        self.context_len = config.text.context
        self.renderer = renderer_of(config, self.tokenizer, assets=assets)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """All but the projections into the shared space, and the classifiers."""
        heads = (self.image_proj, self.text_proj, self.head, self.code_head)
        return param_groups.hidden_matrices(self, heads)

    @property
    def image_spec(self) -> ImageSpec:  # type: ignore[override]
        """What the encoder wants."""
        return ImageSpec(**vars(self.vision.wants), tokens_per_image=1)

    def train(self, mode: bool = True) -> ImageText:
        """As torch's, except that fixed parts keep their running statistics."""
        super().train(mode)
        for part in self.kept:
            part.eval()
        return self

    def forward(self, batch: Batch, return_logits: bool = False) -> Any:
        """Both sides of a batch as a `Pair`.

        Raises:
            DataError: Pre-computed features, which nothing can be trained on.
        """
        if "features" in batch["media_inputs"]:
            raise DataError("an encoder is trained on pixels, not on pre-computed features")
        counts = torch.tensor(images_per_row(batch), device=batch["input_ids"].device)
        rows = counts.nonzero().flatten()
        pixels = batch["media_inputs"].get("pixel_values")
        if pixels is None:  # a batch of texts alone: nothing to pair, every parameter touched
            size = self.vision.image_size
            pixels = self.text_proj.weight.new_zeros(1, self.vision.wants.channels, size, size)
        each = pooled(self.vision.encode(pixels)).float()
        owner = torch.repeat_interleave(torch.arange(len(counts), device=each.device), counts)
        if not len(owner):
            owner = each.new_zeros(len(each), dtype=torch.long)
            rows = owner[:0]
        sums = each.new_zeros(len(counts), each.shape[1]).index_add(0, owner, each)
        mean = (sums / counts.clamp(min=1).unsqueeze(1))[rows] if len(rows) else each[:0]
        mean = self.drop(self._normed(mean))
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

    def _normed(self, mean: Tensor) -> Tensor:
        """(R, 2 D), normalised; by what was seen before where one row has no statistics."""
        norm = self.norm
        seen = not self.training or len(mean) < 2
        if not seen:
            return norm(mean)
        assert norm.running_mean is not None and norm.running_var is not None
        scaled = (mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        return scaled * norm.weight + norm.bias

    def encode_text(self, batch: Batch) -> Tensor:
        """(B, T) ids -> (B, E), of the answers' tokens alone."""
        mask = batch["labels"] != IGNORE_INDEX
        mask[:, 0] |= ~mask.any(dim=1)  # a row that only fills a batch
        ids = batch["input_ids"].clamp(min=0)
        hidden = self.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        weight = mask.unsqueeze(-1).float()
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return functional.normalize(self.text_proj(mean).float(), dim=-1)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """All weights."""
        return dict(self.state_dict())

    def check_assets(self, folder: Path) -> None:
        """The tokenizer learned from the corpus must be the one the weights were trained with.

        Raises:
            WeightsError: It is another one: the corpus has changed since.
        """
        check_tokenizer(folder, self.tokenizer)

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer, and how prompts are written."""
        super().save_assets(folder)
        self.tokenizer.save_pretrained(folder)


def code_parts(codes: Iterable[str]) -> set[str]:
    """Headings, and each with one of its sides or places: ``{"opacity", "opacity/left"}``.

    A bilateral finding is on the left and on the right.
    """
    parts: set[str] = set()
    for code in codes:
        heading, *places = (part.strip().lower() for part in code.split("/"))
        if not heading or heading in NOT_CODED:
            continue
        parts.add(heading)
        for place in places:
            both = ("left", "right") if place == BOTH else (place,)
            parts |= {f"{heading}/{p}" for p in both}
    return parts


def code_id(part: str) -> int:
    """A number above 0 that stands for a coded part in tensors: 62 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "big") >> 2 or 1


def frequent_codes(coded: Sequence[Sequence[str]], least: int) -> tuple[list[str], Tensor]:
    """Coded parts of at least so many samples, and the share of coded samples with each."""
    samples = [parts for parts in map(code_parts, coded) if parts]
    counts = Counter(part for parts in samples for part in parts)
    names = sorted(part for part, n in counts.items() if n >= least)
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


def _fixed_parts(net: nn.Module, train_from: int) -> list[nn.Module]:
    """Everything that comes before block `train_from`.

    Raises:
        InputError: The network has no blocks, or not so many.
    """
    if train_from == 0:
        return []
    net = getattr(net, "inner", net)
    blocks = getattr(net, "blocks", None)
    if blocks is None or train_from > len(blocks):
        have = "has no blocks" if blocks is None else f"has {len(blocks)} blocks"
        raise InputError(f"model.train_from: {train_from}, but this encoder {have}")
    stem = []
    for name, part in net.named_children():
        if name == "blocks":
            break
        stem.append(part)
    return [*stem, *blocks[:train_from]]
