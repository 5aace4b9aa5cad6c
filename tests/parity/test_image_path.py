"""Pixels -> tokens for the LLM: LAVIS's own ViT and Q-Former beside ours, through their files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.parity.reference import lavis_modules, old_bert
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.models.vision.encoders import build_vision
from xraygpt.runners.state import load_weights

WIDTH, DEPTH, SIZE = 88, 3, 56  # of the ViT
HIDDEN, LAYERS, QUERIES, LLM = 64, 4, 8, 32


@dataclass(frozen=True)
class Sizes:
    width: int = WIDTH
    depth: int = DEPTH
    size: int = SIZE
    heads: int = 4
    hidden: int = HIDDEN
    layers: int = LAYERS
    queries: int = QUERIES
    llm: int = LLM
    std: float = 0.06


class Original(nn.Module):
    """What XrayGPT and MiniGPT-4 compose, under their names."""

    def __init__(self, z: Sizes = Sizes()) -> None:
        super().__init__()
        bert, eva = lavis_modules("lavis.models.blip2_models.Qformer", "lavis.models.eva_vit")
        old_bert(bert)
        self.visual_encoder = eva.VisionTransformer(
            img_size=z.size,
            patch_size=14,
            embed_dim=z.width,
            depth=z.depth,
            num_heads=z.heads,
            mlp_ratio=4.3637,
            qkv_bias=True,
            use_mean_pooling=False,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.ln_vision = nn.LayerNorm(z.width)
        config = bert.BertConfig(
            hidden_size=z.hidden,
            num_attention_heads=z.hidden // 64,
            num_hidden_layers=z.layers,
            intermediate_size=4 * z.hidden,
            vocab_size=30,
        )
        config.encoder_width, config.add_cross_attention = z.width, True
        config.cross_attention_freq, config.query_length = 2, z.queries
        self.Qformer = bert.BertLMHeadModel(config=config)
        self.query_tokens = nn.Parameter(torch.zeros(1, z.queries, z.hidden))
        self.t5_proj, self.llama_proj = nn.Linear(z.hidden, 40), nn.Linear(z.hidden, z.llm)
        generator = torch.Generator().manual_seed(5)
        for name, p in self.named_parameters():
            scale = name.endswith("weight") and p.dim() == 1  # of a norm
            p.data = torch.randn(p.shape, generator=generator) * z.std + float(scale)

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        features = self.ln_vision(self.visual_encoder(pixels))
        mask = torch.ones(features.shape[:2], dtype=torch.long) if mask is None else mask
        out = self.Qformer.bert(
            query_embeds=self.query_tokens.expand(len(pixels), -1, -1),
            encoder_hidden_states=features,
            encoder_attention_mask=mask,
            return_dict=True,
        )
        return self.llama_proj(out.last_hidden_state)


@pytest.fixture(scope="module")
def original() -> Original:
    torch.manual_seed(0)
    return Original().eval()


@pytest.fixture
def ours(original, tmp_path) -> XrayGPT:
    """Our model from three files in the layout of the originals."""
    state = original.state_dict()
    eva = {k[15:]: v for k, v in state.items() if k.startswith("visual_encoder.")}
    blip2 = {k: v for k, v in state.items() if not k.startswith(("visual_encoder.", "llama_proj"))}
    last = {k: v for k, v in state.items() if k.startswith("llama_proj")}
    last |= {k: v for k, v in state.items() if k.endswith("position_ids")}
    torch.save(eva, tmp_path / "eva_vit_g.pth")
    torch.save({"model": blip2}, tmp_path / "blip2_pretrained.pth")
    torch.save({"model": last, "epoch": 3}, tmp_path / "xraygpt.pth")
    config = XrayGPT.Config.from_keys(
        vit_model="eva_tiny",
        vit_ckpt=tmp_path / "eva_vit_g.pth",
        num_query_token=QUERIES,
        qformer=QFormerConfig(layers=LAYERS, hidden=HIDDEN),
        llm=SmallLLM(vocab_size=260, hidden=LLM, layers=1, heads=2),
        q_former_model=tmp_path / "blip2_pretrained.pth",
        ckpt=tmp_path / "xraygpt.pth",
    )
    model = XrayGPT(config).eval()
    load_weights(model, Path(config.ckpt))
    return model


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_image_path_is_the_originals(original, ours, dtype, most):
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    original, ours = original.to(dtype), ours.to(dtype)
    with torch.no_grad():
        theirs = original(pixels)
        features = ours.vision.encode(pixels)
        seen = original.visual_encoder(pixels)
        tokens = ours.proj(ours.qformer(features))
    original.float()
    assert theirs.std() > 0.1
    assert (features - seen).abs().max() <= most
    assert (tokens - theirs).abs().max() <= most


def test_padded_features_are_masked_alike(original, ours):
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[0, 9:] = 0
    with torch.no_grad():
        theirs = original(pixels, mask)
        tokens = ours.image_tokens(features=ours.encode(pixels), feature_mask=mask)
        whole = ours.image_tokens(pixels)
    assert (tokens - theirs).abs().max() <= 1e-5
    assert (tokens[0] - whole[0]).abs().max() > 1e-3  # the mask matters


@pytest.mark.parametrize("size", [84, 28])
def test_positions_are_stretched_as_the_original_does(original, ours, tmp_path, size):
    (eva,) = lavis_modules("lavis.models.eva_vit")
    target = nn.Module()
    target.patch_embed = nn.Module()
    target.patch_embed.num_patches = (size // 14) ** 2
    target.pos_embed = torch.zeros(1, target.patch_embed.num_patches + 1, WIDTH)
    state = {"pos_embed": original.visual_encoder.pos_embed.detach().clone()}
    eva.interpolate_pos_embed(target, state)
    stretched = build_vision("eva_tiny", size, tmp_path / "eva_vit_g.pth")
    assert stretched.num_tokens == state["pos_embed"].shape[1]
    assert torch.equal(stretched.net.pos_embed, state["pos_embed"])
