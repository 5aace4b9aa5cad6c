"""transformers' own BLIP-2, with the weights of a model of ours: the other side of benchmarks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from xraygpt.datasets.base import Batch
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID


class Tokens(nn.Module):
    """Our encoder and what lies between it and the Q-Former, where BLIP-2 has its vision model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.norm = model.vision, model.qformer.ln_vision
        self.position = model.qformer.patch_position

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """(N, C, H, W) -> an output with (N, L, D) `last_hidden_state`."""
        patches = self.norm(self.vision(pixel_values))
        if self.position is not None:
            patches = patches + self.position
        return Seen(patches)


class Seen(SimpleNamespace):
    """What transformers asks a vision model's output for."""

    def __init__(self, patches: Tensor) -> None:
        super().__init__(
            last_hidden_state=patches, pooler_output=None, hidden_states=None, attentions=None
        )

    def __getitem__(self, place: int) -> Tensor:
        return (self.last_hidden_state,)[place]


def blip2_of(model: Any) -> Blip2ForConditionalGeneration:
    """BLIP-2 that shares every weight with `model`; its code from end to end is transformers'."""
    qformer = model.qformer.qformer
    config = Blip2Config(
        vision_config={"num_hidden_layers": 1},
        qformer_config=qformer.config.to_dict(),
        text_config=model.llm.config.to_dict(),
        num_query_tokens=model.config.qformer.num_queries,
        image_token_index=model.llm.config.vocab_size - 1,  # of no text; `ids` refuses one with it
    )
    with torch.device("meta"):
        peer = Blip2ForConditionalGeneration(config)
    peer.vision_model, peer.qformer, peer.language_model = Tokens(model), qformer, model.llm
    peer.query_tokens, peer.language_projection = model.qformer.query_tokens, model.proj
    peer.generation_config = model.llm.generation_config
    peer.training = model.training  # the parts keep their own mode: what is frozen has no dropout
    return peer


def inputs_of(peer: Any, batch: Batch) -> dict[str, Tensor]:
    """What BLIP-2 is called with."""
    ids, image = batch["input_ids"], peer.config.image_token_id
    if bool((ids == image).any()):
        raise ValueError(f"token {image} is used by a text")
    return {
        "pixel_values": batch["media_inputs"]["pixel_values"],
        "input_ids": ids.masked_fill(ids == IMAGE_TOKEN_ID, image),
        "attention_mask": batch["attention_mask"],
    }
