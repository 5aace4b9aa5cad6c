"""transformers' BLIP-2 and InstructBLIP folders give the tokens of transformers' classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

from xraygpt.common.errors import WeightsError
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.instruct import InstructXrayGPT
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.runners.state import load_weights

VOCABULARY_SIZE = 260


def transformers_model(config: type, model: type) -> torch.nn.Module:
    torch.manual_seed(0)
    vision = {"hidden_size": 88, "intermediate_size": 384, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    qformer = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1}
    qformer |= {"intermediate_size": 256, "encoder_hidden_size": 88, "vocab_size": VOCABULARY_SIZE}
    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCABULARY_SIZE}
    settings = config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=8
    )
    settings.vision_config.layer_norm_eps = 1e-6
    net = model(settings).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            scale = name.endswith("weight") and p.dim() == 1
            p.copy_(torch.randn(p.shape) * 0.06 + float(scale))
            if name.endswith("qkv.bias"):
                p[88:176] = 0  # EVA has no bias for the key
    inner = getattr(net, "model", net)
    inner.vision_model.post_layernorm.eps = 1e-5  # as in LAVIS; transformers writes 1e-6
    return net


def our_model(kind: type[XrayGPT], **settings) -> XrayGPT:
    config = kind.Config.from_keys(
        vit_model="eva_tiny", num_query_token=8, qformer=QFormerConfig(layers=4, hidden=64),
        llm=SmallLLM(vocab_size=VOCABULARY_SIZE, hidden=32, layers=1, heads=2), **settings,
    )  # fmt: skip
    return kind(config).eval()


@pytest.fixture(scope="module")
def blip2(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    folder = tmp_path_factory.mktemp("blip2")
    net = transformers_model(Blip2Config, Blip2ForConditionalGeneration)
    net.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return net, folder


def test_a_blip2_folder_gives_the_same_image_tokens(blip2, caplog):
    caplog.set_level("DEBUG")
    net, folder = blip2
    model = our_model(XrayGPT)
    load_weights(model, folder)
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        features = net.get_image_features(pixels).pooler_output
        expected = features if features.shape[-1] == 32 else net.language_projection(features)
        assert (model.image_tokens(pixels) - expected).abs().max() < 1e-5
    assert "skipped (the LLM)" in caplog.text


def test_its_parts_load_separately(blip2):
    _, folder = blip2
    full, parts = our_model(XrayGPT), our_model(XrayGPT, vit_ckpt=folder, q_former_model=folder)
    load_weights(full, folder)
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        expected = full.qformer(full.encode(pixels))
        assert torch.equal(parts.qformer(parts.encode(pixels)), expected)


def test_an_instructblip_folder_reads_the_question(tmp_path):
    net = transformers_model(InstructBlipConfig, InstructBlipForConditionalGeneration)
    net.save_pretrained(tmp_path)
    model = our_model(InstructXrayGPT)
    model.qformer.qformer.resize_token_embeddings(VOCABULARY_SIZE)
    load_weights(model, tmp_path)
    pixels, ids = torch.randn(2, 3, 56, 56), torch.randint(0, 250, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        expected = net.get_image_features(
            pixels, qformer_input_ids=ids, qformer_attention_mask=mask
        ).pooler_output
        expected = expected if expected.shape[-1] == 32 else net.language_projection(expected)
        tokens = model.image_tokens(pixels, text_ids=ids, text_mask=mask)
    assert (tokens - expected).abs().max() < 1e-5
    load_weights(our_model(XrayGPT), tmp_path)  # without the Q-Former's text side


def test_a_text_qformer_needs_text_weights(blip2):
    with pytest.raises(WeightsError, match=r"missing qformer\.qformer\.embeddings"):
        load_weights(our_model(InstructXrayGPT), blip2[1])


def test_a_key_bias_is_rejected(tmp_path):
    net = transformers_model(Blip2Config, Blip2ForConditionalGeneration)
    with torch.no_grad():
        next(p for n, p in net.named_parameters() if n.endswith("qkv.bias"))[100] = 1
    net.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="has a bias for the key"):
        load_weights(our_model(XrayGPT), tmp_path)
