"""A Q-Former warmed up on image–text pairs before it meets an LLM: BLIP-2's first stage.

Its queries learn to draw from the frozen encoder what reports speak of: their tokens are drawn to
the right text among others (contrast), and, reading image and text together, they tell pairs from
near misses (matching; Li et al. 2023, after ALBEF, Li et al. 2021). The third of BLIP-2's losses,
generation, is the LLM's own in the next stage. Afterwards ``model.q_former_model`` takes the run.

Notation: B rows, R of them with an image, L patch tokens, D the encoder's width, Q queries, K the
Q-Former's width, E the shared space, T text tokens.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from xraygpt.common.checks import Checks
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.models import param_groups
from xraygpt.models.base import BaseModel, TextSource, build_renderer
from xraygpt.models.llm.small_llm import check_tokenizer, new_tokenizer
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.qformer_llm import import_weights, qformer
from xraygpt.models.qformer_llm.instruct import TextQFormer
from xraygpt.models.qformer_llm.query_collator import QueryCollator
from xraygpt.models.text_assets import saved_tokenizer
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import IGNORE_INDEX


@dataclass
class Aligned:
    """What the losses are taken of."""

    similarity: Tensor  # (R, B) float32, greatest cosine of an image's queries with each text
    rows: Tensor  # (R,) int64, which rows have an image
    scale: Tensor  # () what cosines are multiplied by: one over the temperature
    matched: (
        Tensor  # (R, 3) float32, logits that own image and text, a wrong text, a wrong image fit
    )


@registry.register_model("qformer_alignment", "blip2_qformer")
class QFormerAlignment(BaseModel):
    """Frozen vision encoder, and a Q-Former that reads texts as well as images."""

    @dataclass(kw_only=True)
    class Config(BaseModel.Config):
        """Settings; those of encoder and Q-Former must be the next stage's."""

        vit_model: str = "efficientnet_lite0"
        """The frozen encoder; any name that `arch: xraygpt` takes but `precomputed`."""
        vit_ckpt: Path | None = None
        """Its weights: a file, or a folder as downloaded."""
        image_size: int | None = None
        """Pixels, square; None takes the encoder's own."""
        num_query_token: int = 32
        """Tokens one image becomes."""
        qformer: qformer.QFormerConfig = field(default_factory=qformer.QFormerConfig)
        """Size of the Q-Former."""
        vocab_size: int = 2048
        """Entries of the byte-level BPE tokenizer learned from the training texts."""
        embed_dim: int = 256
        """Width E of the space in which images and texts are compared."""
        temperature: float = 0.07
        """Cosines are divided by it; where training begins, for it is learned."""
        max_txt_len: int | None = 160
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
                check.above(0, "temperature")
                check.at_least(1, "num_query_token")

    config: Config
    context_len = 512  # positions of the Q-Former's words

    def __init__(
        self, config: Config, *, texts: TextSource = list, assets: Path | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.tokenizer = saved_tokenizer(assets) or new_tokenizer(texts(), config.vocab_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.vision = import_weights.vision_of(config).freeze()
            self.qformer = TextQFormer(
                config.qformer,
                vocabulary=len(self.tokenizer),
                vision_width=self.vision.width,
                num_patches=None if self.vision.has_position else self.vision.num_tokens,
                num_query_token=config.num_query_token,
            )
            width = config.qformer.hidden
            self.image_proj = nn.Linear(width, config.embed_dim)
            self.text_proj = nn.Linear(width, config.embed_dim)
            self.match_head = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.media_collator = QueryCollator(1)
        self.renderer = build_renderer(config, self.tokenizer, assets=assets)

    def no_weight_decay(self) -> tuple[str, ...]:
        """The Q-Former's queries."""
        return ("query_tokens",)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """All but the projections into the shared space, and the scoring layer."""
        heads = (self.image_proj, self.text_proj, self.match_head)
        return param_groups.hidden_matrices(self, heads)

    @property
    def image_spec(self) -> ImageSpec:  # type: ignore[override]
        """What the encoder wants."""
        return ImageSpec(**vars(self.vision.input_spec), tokens_per_image=1)

    def forward(self, batch: Batch, return_logits: bool = False) -> Any:
        """An `Aligned`: similarities of all pairs, how well own and hard wrong pairs fit.

        Of a row with several images the first is taken. Wrong partners are drawn by similarity
        among the rows whose findings (`extra.findings`) differ; without such a row any other does.
        """
        ids, mask = self._texts(batch)
        patches, patch_mask, rows = self._patches(batch)
        queries = self.qformer(patches, patch_mask)
        image = functional.normalize(self.image_proj(queries).float(), dim=-1)  # (R, Q, E)
        words = self.qformer.qformer(input_ids=ids, attention_mask=mask).last_hidden_state
        text = functional.normalize(self.text_proj(words[:, 0]).float(), dim=-1)  # (B, E)
        with torch.autocast(image.device.type, enabled=False):  # differences are small
            similarity = torch.einsum("rqe,be->rbq", image, text).amax(dim=2)
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        with torch.no_grad():
            other_text, other_image = self._wrong(similarity * scale, rows, batch)
        pairs = [
            (torch.arange(len(rows), device=rows.device), rows),
            (torch.arange(len(rows), device=rows.device), other_text),
            (other_image, rows),
        ]
        which, said = (torch.cat(side) for side in zip(*pairs, strict=True))
        seen = None if patch_mask is None else patch_mask[which]
        fit = self.qformer(patches[which], seen, text_ids=ids[said], text_mask=mask[said])
        logits = self.match_head(fit).mean(dim=1).float()  # over queries, as BLIP-2 does
        return Aligned(similarity, rows, scale, logits.view(3, -1).T)

    def _texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T) ids and mask of the answers alone; the first place stands for the whole text."""
        said = batch["labels"] != IGNORE_INDEX
        width = int(said.sum(dim=1).max()) + 1
        ids = batch["input_ids"].new_full((len(said), width), self.tokenizer.bos_token_id or 0)
        mask = torch.zeros_like(ids)
        mask[:, 0] = 1
        for row, chosen in enumerate(said):
            tokens = batch["input_ids"][row][chosen]
            ids[row, 1 : 1 + len(tokens)], mask[row, 1 : 1 + len(tokens)] = tokens, 1
        return ids, mask

    def _patches(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """(R, L, D) tokens of the first image of each row that has one, their mask, the rows."""
        counts = torch.tensor(images_per_row(batch), device=batch["input_ids"].device)
        rows = counts.nonzero().flatten()
        inputs = batch["media_inputs"]
        if "features" in inputs:
            tokens, mask = inputs["features"], inputs.get("feature_mask")
        elif "pixel_values" in inputs:
            tokens, mask = self.encode_frozen(inputs["pixel_values"]), None
        else:  # texts alone: every parameter is touched all the same
            shape = (1, self.vision.num_tokens, self.vision.width)
            return self.match_head.weight.new_zeros(shape), None, rows.new_zeros(1)
        first = (counts.cumsum(dim=0) - counts)[rows]
        return tokens[first], None if mask is None else mask[first], rows

    def _wrong(self, logits: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Per image the row of a text, and the place of another image, that do not belong to it."""
        own = torch.zeros_like(logits, dtype=torch.bool)
        own[torch.arange(len(rows)), rows] = True
        findings = batch["extra"].get("findings")
        same = own.clone()
        if findings is not None:
            findings = findings.to(logits.device)
            same |= (findings[rows].unsqueeze(1) == findings.unsqueeze(0)).all(dim=2)
        return (
            _drawn(logits, same, own, self.training),
            _drawn(logits[:, rows].T, same[:, rows].T, own[:, rows].T, self.training),
        )

    @torch.no_grad()
    def encode_frozen(self, pixel_values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D) float32, for the feature cache."""
        return self.vision.encode(pixel_values).float()

    def feature_key(self) -> str | None:
        """Hash of the frozen encoder's weights."""
        return f"{self.config.vit_model} fp32 {self.vision.digest()}"

    def checkpoint_state(self) -> dict[str, Tensor]:
        """All but the frozen encoder."""
        return {n: t for n, t in self.state_dict().items() if not n.startswith("vision.")}

    def check_assets(self, folder: Path) -> None:
        """Tokenizer and the encoder of a run must be those the weights were trained with.

        Raises:
            WeightsError: They are others: the corpus has changed since, or the encoder.
        """
        check_tokenizer(folder, self.tokenizer)
        import_weights.check_encoder(folder, import_weights.run_digest(self.config, self.vision))

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer, and which encoder the Q-Former reads."""
        super().save_assets(folder)
        self.tokenizer.save_pretrained(folder)
        parts = {
            "vit_model": self.config.vit_model,
            **import_weights.run_digest(self.config, self.vision),
        }
        (folder / import_weights.PARTS).write_text(json.dumps(parts, indent=1), encoding="utf-8")


def _drawn(logits: Tensor, same: Tensor, own: Tensor, training: bool = True) -> Tensor:
    """(R,) of (R, C) similarities a column each, never its own.

    In training likelier the more alike; in evaluation the most alike, the same each time.
    """
    none_left = same.all(dim=1, keepdim=True)
    barred = torch.where(none_left, own, same)
    weight = logits.softmax(dim=1).masked_fill(barred, 0) + 1e-6 * (~barred)
    alone = barred.all(dim=1, keepdim=True)  # a batch of one: its own, whose loss is not taken
    chances = torch.where(alone, own.float(), weight)
    return torch.multinomial(chances, 1).squeeze(1) if training else chances.argmax(dim=1)
