"""A plug-in: a Qwen2.5-VL of transformers with its processor, chat template and M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.media.base import Media
from xraygpt.models.base import build_renderer
from xraygpt.models.causal import CausalModel
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID, Run


class QwenCollator:
    """Processes media with the model's processor; the grid determines the number of tokens."""

    def __init__(self, processor: Any) -> None:
        self.images, self.videos = processor.image_processor, processor.video_processor

    def _process(self, media: Media) -> dict[str, Tensor]:
        pixels = (media.data * 255).round().to(torch.uint8)
        if media.kind == "clip":
            inputs = self.videos(videos=[pixels], return_tensors="pt", do_sample_frames=False)
            seconds = self.videos.temporal_patch_size / (media.fps or 2.0)
            return {**inputs, "second_per_grid_ts": torch.tensor([seconds])}
        return dict(self.images(images=[pixels], return_tensors="pt"))

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        runs = []
        for medium in media:
            inputs = self._process(medium)
            grid = inputs["video_grid_thw" if medium.kind == "clip" else "image_grid_thw"]
            runs.append(Run(int(grid.prod()) // self.images.merge_size**2, medium.kind))
        return runs

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        inputs = [self._process(media) for sample in samples for media in sample]
        names = {name for tensors in inputs for name in tensors}
        return {name: torch.cat([t[name] for t in inputs if name in t]) for name in names}


@registry.register_model("qwen_plugin")
class QwenPlugin(CausalModel):
    """A vision-language model of transformers with a frozen vision tower."""

    @dataclass(kw_only=True)
    class Config(CausalModel.Config):
        """The transformers folder, and settings of prompts."""

        path: Path = Path()
        prompt_template: str = "chat_template"
        prompt_path: Path | None = None
        end_sym: str | None = None
        max_txt_len: int | None = 160

    unsupported: Mapping[str, str] = {"maps": "its tokens are patches, without cross-attention"}

    def __init__(self, config: Any, *, assets: Path | None = None, **_: Any) -> None:
        super().__init__(config)
        self.llm = AutoModelForImageTextToText.from_pretrained(config.path, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(config.path)
        self.llm.model.visual.requires_grad_(False)
        self.media_collator, self.tokenizer = QwenCollator(processor), processor.tokenizer
        self.tokenizer.chat_template = processor.chat_template
        marks = {"image": processor.image_token, "video": processor.video_token}
        self.renderer = build_renderer(config, self.tokenizer, assets=assets, media_marks=marks)
        self.image_spec = ImageSpec(image_size=56, mean=(0.5,), std=(0.5,), tokens_per_image=4)
        self.context_len = self.llm.config.text_config.max_position_embeddings

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        inputs, network = batch["media_inputs"], self.llm.model
        tokens = {}
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in inputs:
                encode = getattr(network, f"get_{kind}_features")
                grid = inputs[f"{kind}_grid_thw"]
                tokens[kind] = iter(encode(inputs[pixels], grid).pooler_output)
        return [next(tokens["video" if r.kind == "clip" else "image"]) for r in batch["runs"]]

    def positions(self, batch: Batch) -> Tensor:
        ids = batch["input_ids"]
        kinds = torch.zeros_like(ids)
        for run in batch["runs"]:
            kinds[run.row, run.start : run.start + run.length] = 2 if run.kind == "clip" else 1
        grids = {k: v for k, v in batch["media_inputs"].items() if not k.startswith("pixel")}
        ids, mask = ids.masked_fill(ids == IMAGE_TOKEN_ID, 0), batch["attention_mask"]
        positions, _ = self.llm.model.get_rope_index(ids, kinds, attention_mask=mask, **grids)
        return positions

    def checkpoint_state(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.state_dict().items() if ".visual." not in n}
