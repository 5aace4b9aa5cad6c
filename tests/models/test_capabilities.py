"""Capabilities of models, and the errors if one is missing."""

from __future__ import annotations

import pytest
from torch import nn

from xraygpt.common.errors import InputError
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import AttentionMaps, Chats, FrozenFeatures, require, supports
from xraygpt.models.qformer_llm.model import XrayGPT


class Talking(BaseModel):
    """Its language model is a submodule, which `isinstance` checks of protocols do not find."""

    def __init__(self) -> None:
        super().__init__(None)
        self.llm = nn.Linear(2, 2)

    def media_tokens(self, batch):
        return []

    def embed(self, batch, tokens=None):
        return batch


def test_submodules_count_as_attributes():
    model = Talking()
    assert supports(model, Chats) and require(model, Chats) is model
    assert not supports(model, FrozenFeatures)
    with pytest.raises(InputError, match=r"no encode_frozen and no feature_key \(docs"):
        require(model, FrozenFeatures)
    model.unsupported = {"chat": "it has lost its voice"}
    with pytest.raises(InputError, match=r"\(Talking\) cannot chat because it has lost its voice"):
        require(model, Chats)


@pytest.mark.slow
def test_a_qformer_without_cross_attention_has_no_maps():
    class Pooled(XrayGPT):
        def make_qformer(self, width, patches):
            return nn.Linear(width, self.config.qformer.hidden)

    config = XrayGPT.Config.from_keys(vit_model="tiny", image_size=32, num_query_token=4)
    assert supports(XrayGPT(config), AttentionMaps)
    with pytest.raises(InputError, match="has no cross-attention"):
        require(Pooled(config), AttentionMaps)
