"""The Q-Former that reads the question: LAVIS's own beside ours, through a file in its layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.parity.reference import lavis_modules, old_bert
from xraygpt.models.qformer_llm.instruct import TextQFormer
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.models.weights.lavis import convert_state
from xraygpt.models.weights.rules import load_exactly

WIDTH, HIDDEN, LAYERS, QUERIES, WORDS = 88, 64, 4, 8, 50


@pytest.fixture(scope="module")
def original() -> nn.Module:
    (bert,) = lavis_modules("lavis.models.blip2_models.Qformer")
    old_bert(bert)
    config = bert.BertConfig(
        hidden_size=HIDDEN, num_attention_heads=1, num_hidden_layers=LAYERS,
        intermediate_size=4 * HIDDEN, vocab_size=WORDS,
    )  # fmt: skip
    config.encoder_width, config.add_cross_attention = WIDTH, True
    config.cross_attention_freq, config.query_length = 2, QUERIES
    holder = nn.Module()
    holder.Qformer = bert.BertLMHeadModel(config=config)
    holder.query_tokens = nn.Parameter(torch.zeros(1, QUERIES, HIDDEN))
    holder.ln_vision = nn.LayerNorm(WIDTH)
    generator = torch.Generator().manual_seed(5)
    for name, p in holder.named_parameters():
        scale = name.endswith("weight") and p.dim() == 1
        p.data = torch.randn(p.shape, generator=generator) * 0.06 + float(scale)
    return holder.eval()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_queries_question_and_padded_image_are_read_alike(original, tmp_path, dtype, most):
    state = {k: v for k, v in original.state_dict().items() if not k.startswith("Qformer.cls")}
    account = convert_state(state, tmp_path / "instruct_blip.pth", text=True)
    ours = TextQFormer(
        QFormerConfig(layers=LAYERS, hidden=HIDDEN, num_queries=QUERIES), vocab_size=WORDS,
        vision_width=WIDTH, num_patches=None,
    ).eval()  # fmt: skip
    found = {k.removeprefix("qformer."): v for k, v in account.state.items()}
    load_exactly(ours, found, tmp_path, required=set(ours.state_dict()))
    assert set(account.dropped) <= {"constants"}
    original, ours = original.to(dtype), ours.to(dtype)

    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 17, WIDTH, generator=generator).to(dtype)
    seen, text_mask = torch.ones(2, 17, dtype=torch.long), torch.ones(2, 6, dtype=torch.long)
    seen[0, 9:], text_mask[1, 4:] = 0, 0
    ids = torch.randint(0, WORDS, (2, 6), generator=generator)
    with torch.no_grad():
        theirs = original.Qformer.bert(
            ids,
            attention_mask=torch.cat([torch.ones(2, QUERIES, dtype=torch.long), text_mask], 1),
            query_embeds=original.query_tokens.expand(2, -1, -1),
            encoder_hidden_states=original.ln_vision(features),
            encoder_attention_mask=seen,
            return_dict=True,
        ).last_hidden_state[:, :QUERIES]
        tokens = ours(features, seen, text_ids=ids, text_mask=text_mask)
        other = ours(features, seen, text_ids=ids.flip(0), text_mask=text_mask)
    original.float()
    assert (tokens - theirs).abs().max() <= most
    assert (tokens - other).abs().max() > 1e-3  # the question matters
