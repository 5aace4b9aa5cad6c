"""Names, shapes and counts at full size, without a byte of memory: tensors on the meta device."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.conftest import REPO
from tests.parity.reference import lavis_modules, old_bert
from xraygpt.models.llm import small_llm as language
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm import build, import_weights
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormer, QFormerConfig
from xraygpt.models.vision import published
from xraygpt.models.weights.lavis import convert_state
from xraygpt.runners import state


def shapes(module: nn.Module, prefix: str) -> dict[str, torch.Size]:
    return {f"{prefix}{name}": tensor.shape for name, tensor in module.state_dict().items()}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def theirs_under_our_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in convert_state(state, Path("x.pth")).state.items()}


def test_the_qformer_has_every_parameter_of_blip2s():
    (bert,) = lavis_modules("lavis.models.blip2_models.Qformer")
    old_bert(bert)
    config = bert.BertConfig()
    config.encoder_width, config.add_cross_attention = 1408, True
    config.cross_attention_freq, config.query_length = 2, 32
    with torch.device("meta"):
        original = bert.BertLMHeadModel(config=config)
        ours = QFormer(QFormerConfig(), vision_width=1408, num_patches=None)
    state = {f"Qformer.{k}": v for k, v in original.state_dict().items()}
    state["query_tokens"] = torch.empty(1, 32, 768, device="meta")
    state |= {f"ln_vision.{k}": torch.empty(1408, device="meta") for k in ("weight", "bias")}
    assert theirs_under_our_names(state) == shapes(ours, "qformer.")
    assert round(count(ours.qformer) / 1e6, 1) == 105.1


@pytest.mark.slow
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
            ours = timm.create_model("eva_giant_patch14_clip_224", **published.EVA)
        finally:
            torch.linspace = linspace
    assert theirs_under_our_names(dict(original.state_dict())) == shapes(ours, "vision.net.")
    assert round(count(ours) / 1e6, 1) == 985.9


def published_layers() -> tuple[dict, dict, dict]:
    """What the three files of XrayGPT hold, at full size, as LAVIS's own modules name it."""
    (bert,) = lavis_modules("lavis.models.blip2_models.Qformer")
    old_bert(bert)
    config = bert.BertConfig()
    config.encoder_width, config.add_cross_attention = 1408, True
    config.cross_attention_freq, config.query_length = 2, 32
    config.vocab_size = 30523
    names = {"num_classes": 1024, "global_pool": "avg"}  # with the block and head BLIP-2 cuts
    with torch.device("meta"):
        qformer = bert.BertLMHeadModel(config=config)
        vit = timm.create_model("eva_giant_patch14_clip_224", **names)
    eva = {k: v.half() for k, v in vit.state_dict().items()}
    empty = partial(torch.empty, device="meta")
    blip2 = {f"Qformer.{k}": v for k, v in qformer.state_dict().items()}
    blip2 |= {"query_tokens": empty(1, 32, 768), "temp": empty(())}
    blip2 |= {f"ln_vision.{k}": empty(1408) for k in ("weight", "bias")}
    blip2 |= {"t5_proj.weight": empty(4096, 768), "t5_proj.bias": empty(4096)}
    for head, shape in (("vision_proj", 256), ("text_proj", 256), ("itm_head", 2)):
        blip2 |= {f"{head}.weight": empty(shape, 768), f"{head}.bias": empty(shape)}
    last = {"llama_proj.weight": empty(4096, 768), "llama_proj.bias": empty(4096)}
    last["Qformer.bert.embeddings.position_ids"] = empty(1, 512)
    for i in range(32):
        last[f"llama_model.model.layers.{i}.self_attn.rotary_emb.inv_freq"] = empty(64)
    return eva, blip2, last


@pytest.mark.slow
def test_pretrain_vicuna_takes_the_three_published_files(monkeypatch, caplog, tmp_path):
    """The whole preset on the meta device; every key of every file is taken or named."""
    caplog.set_level("DEBUG")
    files = dict(
        zip(("eva_vit_g.pth", "blip2.pth", "xraygpt.pth"), published_layers(), strict=True)
    )
    monkeypatch.setattr(import_weights, "read_weights", lambda path: (path, files[path.name]))
    monkeypatch.setattr(state, "read_weights", lambda path: (path, files[path.name]))
    monkeypatch.setattr(published, "read_state_dict", lambda path: files[path.name])
    monkeypatch.setattr(language, "digest", lambda llm: "")
    monkeypatch.setattr(build, "init_projection", lambda proj, llm: None)
    preset = REPO / "xraygpt" / "configs" / "models" / "xraygpt" / "pretrain_vicuna.yaml"
    settings = OmegaConf.to_container(OmegaConf.load(preset))["model"] | {
        "llm": SmallLLM(vocab_size=260, hidden=4096, layers=1, heads=32), "llama_model": None,
        "vit_ckpt": tmp_path / "eva_vit_g.pth", "q_former_model": tmp_path / "blip2.pth",
        "ckpt": tmp_path / "xraygpt.pth",
    }  # fmt: skip
    settings["qformer"] = QFormerConfig(**settings.get("qformer", {}))
    with torch.device("meta"):
        model = XrayGPT(XrayGPT.Config.from_keys(**settings))
    _, fresh = state.load_weights(model, tmp_path / "xraygpt.pth")
    assert fresh == []
    assert round(count(model.vision) / 1e6, 1) == 985.9
    assert round(count(model.qformer.qformer) / 1e6, 1) == 105.1
    assert tuple(model.proj.weight.shape) == (4096, 768)
    taken = {"eva_vit_g.pth": 511, "blip2.pth": 257, "xraygpt.pth": 2}
    for name, number in taken.items():
        account = convert_state(files[name], tmp_path / name)
        left_out = sum(len(keys) for keys in account.dropped.values())
        assert len(account.state) + left_out == len(files[name])
        assert len(account.state) == number, name
        assert str(account) in caplog.text
