"""transformers' own BLIP-2 with the weights of one of our models, for comparison in benchmarks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from xraygpt.datasets.base import Batch
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID


class VisionModel(nn.Module):
    """Our encoder, its layer norm and position embedding, in place of BLIP-2's vision model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.norm = model.vision, model.qformer.ln_vision
        self.position = model.qformer.patch_position

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """(N, C, H, W) -> an output with (N, L, D) `last_hidden_state`."""
        patches = self.norm(self.vision(pixel_values))
        if self.position is not None:
            patches = patches + self.position
        return VisionOutput(patches)


class VisionOutput(SimpleNamespace):
    """The parts of a vision model's output that transformers reads."""

    def __init__(self, patches: Tensor) -> None:
        super().__init__(
            last_hidden_state=patches, pooler_output=None, hidden_states=None, attentions=None
        )

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]


def blip2_of(model: Any) -> Blip2ForConditionalGeneration:
    """Build BLIP-2 from transformers' code only, sharing every weight with `model`."""
    qformer = model.qformer.qformer
    config = Blip2Config(
        vision_config={"num_hidden_layers": 1},
        qformer_config=qformer.config.to_dict(),
        text_config=model.llm.config.to_dict(),
        num_query_tokens=model.config.qformer.num_queries,
        image_token_index=model.llm.config.vocab_size
        - 1,  # `inputs_of` checks that no text uses it
    )
    with torch.device("meta"):
        peer = Blip2ForConditionalGeneration(config)
    peer.vision_model = VisionModel(model)
    peer.qformer, peer.language_model = qformer, model.llm
    peer.query_tokens, peer.language_projection = model.qformer.query_tokens, model.proj
    peer.generation_config = model.llm.generation_config
    peer.training = model.training  # frozen parts stay without dropout
    return peer


def inputs_of(peer: Any, batch: Batch) -> dict[str, Tensor]:
    """Keyword arguments of BLIP-2 for one of our batches.

    Raises:
        ValueError: A text contains the token that marks images.
    """
    ids, image_id = batch["input_ids"], peer.config.image_token_id
    if bool((ids == image_id).any()):
        raise ValueError(f"token {image_id} is used by a text")
    return {
        "pixel_values": batch["media_inputs"]["pixel_values"],
        "input_ids": ids.masked_fill(ids == IMAGE_TOKEN_ID, image_id),
        "attention_mask": batch["attention_mask"],
    }
