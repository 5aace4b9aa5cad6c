"""LLaVA-OneVision (Li et al. 2024): one image in tiles of a fixed size, several images untiled."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from xraygpt.boxes.spelling import SpellingName
from xraygpt.common.errors import InputError
from xraygpt.media.base import Media
from xraygpt.models.stock_vlm.family import Family, Part, refuse_kind
from xraygpt.models.stock_vlm.media_input import Layout, to_uint8


class LlavaOneVision(Family):
    """The only image of a sample is split into tiles; of several, each is a single tile."""

    boxes: ClassVar[SpellingName] = "unit"
    model_types = ("llava_onevision",)
    prefixes: ClassVar[dict[Part, tuple[str, ...]]] = {
        "vision": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.", "model.image_newline"),
    }

    def __init__(self, network: Any, processor: Any) -> None:
        super().__init__(network, processor)
        self.model = network.model
        size = processor.image_processor.size
        self.side: int = int(size.get("height") or size["shortest_edge"])

    @property
    def towers(self) -> list[nn.Module]:
        """The SigLIP tower."""
        return [self.model.vision_tower]

    def is_unused(self, name: str) -> bool:
        """Return whether a weight lies behind the layer of the tower whose output is used."""
        if not name.startswith("model.vision_tower."):
            return False
        if ".post_layernorm." in name or ".head." in name:
            return True
        found = re.search(r"\.layers\.(\d+)\.", name)
        config = self.network.config
        layers = config.vision_feature_layer
        count = config.vision_config.num_hidden_layers
        used = max(
            n if n >= 0 else count + 1 + n
            for n in ([layers] if isinstance(layers, int) else layers)
        )
        return found is not None and int(found[1]) >= used

    def layouts(self, media: Sequence[Media]) -> list[Layout]:
        """Return the layout of each medium; an image is tiled if it is the sample's only one."""
        images = sum(self._is_image(medium) for medium in media)
        return [Layout.of_stored(medium) or self._layout(medium, images == 1) for medium in media]

    def context(self, kinds: Sequence[str]) -> str:
        """Return whether the only image is tiled."""
        return "tiled" if list(kinds).count("image") == 1 else ""

    def _is_image(self, medium: Media) -> bool:
        layout = Layout.of_stored(medium)
        return (layout.kind if layout is not None else medium.kind) == "image"

    def _layout(self, medium: Media, tiled: bool) -> Layout:
        if medium.kind not in ("image", "clip"):
            raise refuse_kind(medium)
        height, width = (int(n) for n in medium.data.shape[-2:])
        if medium.kind == "clip":
            frames = len(medium.data)
            pooled = math.ceil(math.sqrt(self.processor.num_image_tokens) / 2)
            count = frames * pooled**2 + 1
            return Layout("clip", (frames, height, width), (self.video_id,) * count)
        count = self.processor.num_image_tokens + 1
        if tiled:
            count = self.processor._get_number_of_features(height, width, self.side, self.side)
        if self.processor.vision_feature_select_strategy == "default":
            count -= 1
        return Layout("image", (int(tiled), height, width), (self.image_id,) * count)

    def resized(self, layout: Layout) -> tuple[int, int]:
        """Return the size of a tile, which all images and frames have."""
        return self.side, self.side

    def pixels(self, medium: Media, layout: Layout) -> Tensor:
        """Return (P, 3, S, S): the tiles of an image after a view of the whole, or the frames."""
        data = to_uint8(medium.data)
        if layout.kind == "clip":
            frames: Tensor = self.processor.video_processor(
                videos=[data], return_tensors="pt", do_sample_frames=False
            )["pixel_values_videos"][0]
            return frames
        images = [data] if layout.grid[0] else [data, data]  # two are not tiled
        tiles: Tensor = self.processor.image_processor(images=[images], return_tensors="pt")[
            "pixel_values"
        ][0]
        return tiles

    def tower(self, pixels: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
        """Return each medium's (P, N, D) features of the N patches in each tile."""
        tower, config = self.model.vision_tower, self.network.config
        output = tower(pixels.to(tower.dtype), output_hidden_states=True, return_dict=True)
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        features = torch.cat([output.hidden_states[i] for i in layers], dim=-1)
        if config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
        return list(features.split([self._rows(layout) for layout in layouts]))

    def _rows(self, layout: Layout) -> int:
        """Return the number of tiles or frames of a medium."""
        from transformers.models.llava_onevision.modeling_llava_onevision import (
            image_size_to_num_patches,
        )

        first, height, width = layout.grid
        if layout.kind == "clip":
            return first
        if not first:
            return 1
        pinpoints = self.network.config.image_grid_pinpoints
        count: int = image_size_to_num_patches([height, width], pinpoints, self.side)
        return count

    def project(self, features: Tensor, layout: Layout) -> Tensor:
        """Project (P, N, D) features, arrange the tiles, and add the ends of lines."""
        projector, newline = self.model.multi_modal_projector, self.model.image_newline
        projected: Tensor = projector(features.to(self.network.dtype))
        if layout.kind == "clip":
            pooled = self.model.apply_pooling(projected).flatten(0, 1)
            return torch.cat([pooled, newline[None].to(pooled)])
        size = torch.tensor([layout.grid[1:]])
        packed, _ = self.model.pack_image_features(
            [projected], size, image_newline=newline,
            vision_aspect_ratio=self.network.config.vision_aspect_ratio,
        )  # fmt: skip
        tokens: Tensor = packed[0]
        return tokens

    def set_pixels(
        self, kind: Literal["image", "video"], low: int | None, high: int | None
    ) -> None:
        """Refuse limits, since tiles have a fixed size."""
        raise InputError(
            f"model.media.{kind}_min_pixels and {kind}_max_pixels do not apply to LLaVA-OneVision, "
            "whose tiles have a fixed size; remove them"
        )
