"""The decoder of Qwen3-VL, which adds features of the vision tower to its first layers' output.

With n such layers, a token has width H · (1 + n): its embedding, followed by what is added after
each of these layers, which is zero for text. Packing, padding, chat and decoding treat such tokens
like those of any other model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast


class DeepstackDecoder:
    """A causal language model that reads tokens of width H · (1 + n).

    It is no `nn.Module`, since the weights belong to `network`.

    Args:
        network: A Qwen3-VL of transformers.
        levels: n, the number of layers whose output features are added to.
    """

    def __init__(self, network: Any, levels: int) -> None:
        self.network, self.levels = network, levels
        self.config = network.config.get_text_config()

    @property
    def generation_config(self) -> Any:
        """The model's settings for generation."""
        return self.network.generation_config

    def get_input_embeddings(self) -> Any:
        """Return a function from ids to tokens of width H · (1 + n)."""
        return self.embed

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ids of any shape, with zeros for the features that are added later."""
        embeds: Tensor = self.network.get_input_embeddings()(ids)
        return F.pad(embeds, (0, embeds.shape[-1] * self.levels))

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        layer: nn.Module = self.network.get_output_embeddings()
        return layer

    def get_decoder(self) -> Any:
        """Return the transformer without its output layer."""
        return self.network.model.language_model

    def __call__(
        self,
        inputs_embeds: Tensor | None = None,
        input_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits like a causal language model of transformers."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids)
        embeds, *added = inputs_embeds.chunk(1 + self.levels, dim=-1)
        visual = added[0].detach().ne(0).any(dim=-1)
        deepstack: dict[str, Any] = {}
        if bool(visual.any()):
            features = [level[visual] for level in added]
            deepstack = {"visual_pos_masks": visual, "deepstack_visual_embeds": features}
        output = self.get_decoder()(inputs_embeds=embeds.contiguous(), **deepstack, **inputs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = output.last_hidden_state[:, keep]
        logits = self.get_output_embeddings()(hidden)
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)
