"""A plug-in: any Qwen2.5-VL of transformers, its own processor and chat template, M-RoPE."""

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
from xraygpt.models.base import renderer_of
from xraygpt.models.causal import CausalModel
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID, Run


class QwenPacker:
    """Tokens of each image or clip by the size of its grid; pixels by the model's processor."""

    def __init__(self, processor: Any) -> None:
        self.images, self.videos = processor.image_processor, processor.video_processor

    def _made(self, media: Media) -> dict[str, Tensor]:
        pixels = (media.data * 255).round().to(torch.uint8)
        if media.kind == "clip":
            made = self.videos(videos=[pixels], return_tensors="pt", do_sample_frames=False)
            seconds = self.videos.temporal_patch_size / (media.fps or 2.0)
            return {**made, "second_per_grid_ts": torch.tensor([seconds])}
        return dict(self.images(images=[pixels], return_tensors="pt"))

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        runs = []
        for one in media:
            made = self._made(one)
            grid = made["video_grid_thw" if one.kind == "clip" else "image_grid_thw"]
            runs.append(Run(int(grid.prod()) // self.images.merge_size**2, one.kind))
        return runs

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        each = [self._made(media) for sample in samples for media in sample]
        names = {name for one in each for name in one}
        return {name: torch.cat([one[name] for one in each if name in one]) for name in names}


@registry.register_model("stock_vlm")
class StockVlm(CausalModel):
    """A vision-language model of transformers, its vision tower frozen."""

    @dataclass(kw_only=True)
    class Config(CausalModel.Config):
        """A transformers folder, and how prompts are written."""

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
        self.media_collator, self.tokenizer = QwenPacker(processor), processor.tokenizer
        self.tokenizer.chat_template = processor.chat_template
        marks = {"image": processor.image_token, "video": processor.video_token}
        self.renderer = renderer_of(config, self.tokenizer, assets=assets, media_marks=marks)
        self.image_spec = ImageSpec(image_size=56, mean=(0.5,), std=(0.5,), tokens_per_image=4)
        self.context_len = self.llm.config.text_config.max_position_embeddings

    def media_tokens(self, batch: Batch) -> list[Tensor]:
        inputs, network = batch["media_inputs"], self.llm.model
        found = {}
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in inputs:
                encode = getattr(network, f"get_{kind}_features")
                found[kind] = iter(encode(inputs[pixels], inputs[f"{kind}_grid_thw"]).pooler_output)
        return [next(found["video" if r.kind == "clip" else "image"]) for r in batch["runs"]]

    def positions(self, batch: Batch) -> Tensor:
        ids = batch["input_ids"]
        kinds = torch.zeros_like(ids)
        for run in batch["runs"]:
            kinds[run.row, run.start : run.start + run.length] = 2 if run.kind == "clip" else 1
        grids = {k: v for k, v in batch["media_inputs"].items() if not k.startswith("pixel")}
        ids, mask = ids.masked_fill(ids == IMAGE_TOKEN_ID, 0), batch["attention_mask"]
        found: Tensor = self.llm.model.get_rope_index(ids, kinds, attention_mask=mask, **grids)[0]
        return found

    def checkpoint_state(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.state_dict().items() if ".visual." not in n}
