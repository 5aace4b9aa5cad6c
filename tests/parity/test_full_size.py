"""Names, shapes and counts at full size, without a byte of memory: tensors on the meta device."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

from tests.parity.reference import lavis_modules, old_bert
from xraygpt.models import encoders
from xraygpt.models.lineage import translate
from xraygpt.models.qformer import QFormer, QFormerConfig


def shapes(module: nn.Module, prefix: str) -> dict[str, torch.Size]:
    return {f"{prefix}{name}": tensor.shape for name, tensor in module.state_dict().items()}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def theirs_under_our_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in translate(state, Path("x.pth")).state.items()}


def test_the_qformer_has_every_parameter_of_blip2s():
    (bert,) = lavis_modules("lavis.models.blip2_models.Qformer")
    old_bert(bert)
    config = bert.BertConfig()
    config.encoder_width, config.add_cross_attention = 1408, True
    config.cross_attention_freq, config.query_length = 2, 32
    with torch.device("meta"):
        original = bert.BertLMHeadModel(config=config)
        ours = QFormer(QFormerConfig(), vision_width=1408, num_patches=None, num_query_token=32)
    state = {f"Qformer.{k}": v for k, v in original.state_dict().items()}
    state["query_tokens"] = torch.empty(1, 32, 768, device="meta")
    state |= {f"ln_vision.{k}": torch.empty(1408, device="meta") for k in ("weight", "bias")}
    assert theirs_under_our_names(state) == shapes(ours, "qformer.")
    assert round(count(ours.qformer) / 1e6, 1) == 105.1


def test_eva_has_every_parameter_of_eva_vit_g():
    (eva,) = lavis_modules("lavis.models.eva_vit")
    linspace = torch.linspace
    with torch.device("meta"):
        torch.linspace = partial(linspace, device="cpu")  # its values are asked for
        try:
            original = eva.VisionTransformer(
                img_size=224,
                patch_size=14,
                embed_dim=1408,
                depth=39,
                num_heads=1408 // 88,
                mlp_ratio=4.3637,
                qkv_bias=True,
                use_mean_pooling=False,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            ours = timm.create_model("eva_giant_patch14_clip_224", **encoders.EVA)
        finally:
            torch.linspace = linspace
    assert theirs_under_our_names(dict(original.state_dict())) == shapes(ours, "vision.net.")
    assert round(count(ours) / 1e6, 1) == 985.9
