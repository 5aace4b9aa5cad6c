"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, M-RoPE, DeepStack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xraygpt.boxes.spelling import SpellingName
from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.media.outline import is_constant, zeros
from xraygpt.media.stored import not_to_be_stored
from xraygpt.models.stock_vlm.deepstack import DeepstackDecoder
from xraygpt.models.stock_vlm.family import Family, Part, refuse_kind
from xraygpt.models.stock_vlm.media_input import Layout, to_uint8

_UNKNOWN_FPS = 24.0  # assumed by transformers for frames without times


class QwenVL(Family):
    """Qwen2-VL (Wang et al. 2024) and Qwen2.5-VL (Bai et al. 2025)."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    prefixes: ClassVar[dict[Part, tuple[str, ...]]] = {
        "vision": ("model.visual.",),
        "projector": ("model.visual.merger.",),
    }

    def __init__(self, network: Any, processor: Any) -> None:
        super().__init__(network, processor)
        self.visual = network.model.visual
        videos = processor.video_processor
        if videos.cap_pixels_per_frame is None:  # transformers' default, but with a warning
            videos.cap_pixels_per_frame = False

    @property
    def boxes(self) -> SpellingName:  # type: ignore[override]
        """Qwen2.5-VL was trained with pixels, the others with thousandths."""
        return "pixels" if self.network.config.model_type == "qwen2_5_vl" else "thousand"

    def read_size(self, layout: Layout) -> tuple[int, int]:
        """Return the size of the resized image in pixels."""
        patch = self.processor.image_processor.patch_size
        return layout.grid[1] * patch, layout.grid[2] * patch

    @property
    def towers(self) -> list[nn.Module]:
        """The tower without the merger, which is the projector."""
        return [m for name, m in self.visual.named_children() if "merger" not in name]

    # --- layouts ---------------------------------------------------------------------------------

    def layouts(self, media: Sequence[Media]) -> list[Layout]:
        """Return the layout of each medium; it does not depend on the other media."""
        return [Layout.of_stored(medium) or self._layout(medium) for medium in media]

    def _layout(self, medium: Media) -> Layout:
        if medium.kind not in ("image", "clip"):
            raise refuse_kind(medium)
        is_clip = medium.kind == "clip"
        height, width = medium.data.shape[-2:]
        try:
            grid = self._clip_grid(len(medium.data), height, width) if is_clip else None
            grid = grid or (1, *self._image_grid(height, width))
        except ValueError as error:  # of transformers, about the aspect ratio
            raise DataError(f"this model cannot read {width} × {height} pixels: {error}") from None
        seconds = self._seconds(medium) if is_clip else 1.0
        return Layout("clip" if is_clip else "image", grid, self._ids(medium, grid), seconds)

    def _image_grid(self, height: int, width: int) -> tuple[int, int]:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        images = self.processor.image_processor
        size = images.size
        high, wide = smart_resize(
            height, width, factor=images.patch_size * images.merge_size,
            min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"],
        )  # fmt: skip
        return high // images.patch_size, wide // images.patch_size

    def _clip_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        videos = self.processor.video_processor
        high, wide = self._clip_size(frames, height, width)
        steps = math.ceil(frames / videos.temporal_patch_size)
        return steps, high // videos.patch_size, wide // videos.patch_size

    def _clip_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of a resized frame, in pixels."""
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

        videos = self.processor.video_processor
        factor = videos.patch_size * videos.merge_size
        low, high = videos.size["shortest_edge"], videos.size["longest_edge"]
        if videos.cap_pixels_per_frame:
            total = int(videos.max_video_tokens * factor * factor * 0.9)
            share = total * videos.temporal_patch_size // frames
            high = max(min(high, share), int(low * 1.05))
        size: tuple[int, int] = smart_resize(
            height, width, factor=factor, min_pixels=low, max_pixels=high
        )
        return size

    def _seconds(self, medium: Media) -> float:
        """Return the seconds between two steps of the temporal grid, from the frames' times."""
        step: int = self.processor.video_processor.temporal_patch_size
        return step / (medium.fps or _UNKNOWN_FPS)

    def _ids(self, medium: Media, grid: tuple[int, int, int]) -> tuple[int, ...]:
        count = math.prod(grid) // self.visual.spatial_merge_size**2
        return (self.video_id if medium.kind == "clip" else self.image_id,) * count

    def resized(self, layout: Layout) -> tuple[int, int]:
        """Return the height and width in pixels of a resized image or frame."""
        patch = self.processor.image_processor.patch_size
        return layout.grid[1] * patch, layout.grid[2] * patch

    # --- pixels ----------------------------------------------------------------------------------

    def pixels(self, medium: Media, layout: Layout) -> Tensor:
        """Return (P, C · t · p · p) patches in the order in which the tower reads them."""
        data = to_uint8(medium.data)
        if layout.kind == "image":
            inputs = self.processor.image_processor(images=[data], return_tensors="pt")
            patches, grid = inputs["pixel_values"], inputs["image_grid_thw"]
        else:
            inputs = self.processor.video_processor(
                videos=[self._pad_frames(data)], return_tensors="pt", do_sample_frames=False
            )
            patches, grid = inputs["pixel_values_videos"], inputs["video_grid_thw"]
        if tuple(grid[0].tolist()) != layout.grid:
            raise DataError(
                f"the processor makes a grid of {grid[0].tolist()} patches, but {layout.grid} "
                "were expected: this version of transformers resizes in another way"
            )
        return patches

    def _pad_frames(self, data: Tensor) -> Tensor:
        return data

    def shrink(self, medium: Media, layout: Layout, factor: float) -> Media | None:
        """Return a copy resized so that it has at most `factor` times the tokens."""
        if Layout.of_stored(medium) is not None:
            return None
        patch = self.processor.image_processor.patch_size
        unit = patch * self.visual.spatial_merge_size
        sides = [
            max(unit, int(n * patch * math.sqrt(factor) // unit * unit)) for n in layout.grid[1:]
        ]
        if is_constant(medium.data):  # an outline, which has no values to resize
            return medium.with_data(zeros((*medium.data.shape[:-2], *sides)), medium.geometry)
        data = to_uint8(medium.data).float()
        frames = data if layout.kind == "clip" else data[None]
        small = F.interpolate(frames, size=sides, mode="bicubic", antialias=True)
        small = small.round().clamp(0, 255).to(torch.uint8)
        small = small if layout.kind == "clip" else small[0]
        return not_to_be_stored(medium.with_data(small, medium.geometry))

    def set_pixels(
        self, kind: Literal["image", "video"], low: int | None, high: int | None
    ) -> None:
        """Set the limits of the processor, per image or frame."""
        target = getattr(self.processor, f"{kind}_processor")
        size = dict(target.size)
        size["shortest_edge"] = low or size["shortest_edge"]
        size["longest_edge"] = high or size["longest_edge"]
        size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
        target.size = size

    # --- features and positions ------------------------------------------------------------------

    def tower(self, pixels: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
        """Return each medium's (P, D) patch features, in the order of its patches."""
        grids = torch.tensor([layout.grid for layout in layouts], device=pixels.device)
        with _without_merger(self.visual) as captured:
            self.visual(pixels.to(self.visual.dtype), grid_thw=grids)
        counts = [math.prod(layout.grid) for layout in layouts]
        features: list[Tensor] = list(captured[0].split(counts))
        return features

    def project(self, features: Tensor, layout: Layout) -> Tensor:
        """Merge 2 × 2 neighbouring patches into (L', H) tokens."""
        merged: Tensor = self.visual.merger(features.to(self.visual.dtype))
        return merged

    def positions(
        self, ids: Tensor, mask: Tensor, grids: Tensor, seconds: Tensor, clips: Tensor
    ) -> Tensor | None:
        """Return M-RoPE's (3, B, T) ids: time, height and width."""
        types = torch.where(ids == self.image_id, 1, torch.where(ids == self.video_id, 2, 0))
        inputs: dict[str, Any] = {}
        if not bool(clips.all()):
            inputs["image_grid_thw"] = grids[~clips]
        if bool(clips.any()):
            inputs |= {"video_grid_thw": grids[clips], "second_per_grid_ts": seconds[clips]}
        found: Tensor = self.network.model.get_rope_index(
            ids, types, attention_mask=mask, **inputs
        )[0]
        return found


class Qwen3VL(QwenVL):
    """Qwen3-VL: times are written as text between the frames, and DeepStack (Meng et al. 2024)."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    prefixes: ClassVar[dict[Part, tuple[str, ...]]] = {
        "vision": ("model.visual.",),
        "projector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    }
    splits = False  # DeepStack projects the output of several layers of the tower

    def __init__(self, network: Any, processor: Any) -> None:
        super().__init__(network, processor)
        self._decoder = DeepstackDecoder(network, len(self.visual.deepstack_visual_indexes))

    @property
    def llm(self) -> Any:
        """The decoder, which reads DeepStack's features next to the embeddings."""
        return self._decoder

    def _clip_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        videos = self.processor.video_processor
        factor, frames = videos.patch_size * videos.merge_size, max(frames, 2)
        low, high = videos.size["shortest_edge"], videos.size["longest_edge"]
        if videos.cap_pixels_per_frame:
            share = min(videos.max_video_tokens * factor * factor, high // frames)
            high = max(share, int(low * 1.05)) * frames
        size: tuple[int, int] = smart_resize(
            num_frames=frames, height=height, width=width, factor=factor,
            temporal_factor=videos.temporal_patch_size, min_pixels=low, max_pixels=high,
        )  # fmt: skip
        return size

    def _pad_frames(self, data: Tensor) -> Tensor:
        """Repeat the only frame of a clip, which the processor would refuse."""
        return data.repeat(2, 1, 1, 1) if len(data) == 1 else data

    def _ids(self, medium: Media, grid: tuple[int, int, int]) -> tuple[int, ...]:
        """Return the ids of a medium; before each step of a clip, its time is written."""
        if medium.kind != "clip":
            return super()._ids(medium, grid)
        tokenizer, processor = self.processor.tokenizer, self.processor
        frame = grid[1] * grid[2] // self.visual.spatial_merge_size**2
        ids: list[int] = []
        for time in self._step_times(medium, grid[0]):
            ids += tokenizer(f"<{time:.1f} seconds>", add_special_tokens=False)["input_ids"]
            ids.append(processor.vision_start_token_id)
            ids += [self.video_id] * frame
            ids.append(processor.vision_end_token_id)
        return tuple(ids)

    def _step_times(self, medium: Media, steps: int) -> list[float]:
        """Return the mean time of the frames in each step of the temporal grid, in seconds."""
        times = list(medium.frame_times or [i / _UNKNOWN_FPS for i in range(len(medium.data))])
        size = self.processor.video_processor.temporal_patch_size
        times += [times[-1]] * (steps * size - len(times))
        return [(times[i * size] + times[(i + 1) * size - 1]) / 2 for i in range(steps)]

    def tower(self, pixels: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
        """Return each medium's (L', H · (1 + n)) tokens, already projected."""
        grids = torch.tensor([layout.grid for layout in layouts], device=pixels.device)
        output = self.visual(pixels.to(self.visual.dtype), grid_thw=grids, return_dict=True)
        tokens = torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)
        merge = self.visual.spatial_merge_size**2
        return list(tokens.split([math.prod(layout.grid) // merge for layout in layouts]))

    def project(self, features: Tensor, layout: Layout) -> Tensor:
        """Return the tokens, since `tower` projects them."""
        return features


class _without_merger:
    """Makes a tower return its patch features, in the order of the patches, and no tokens."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.captured: list[Tensor] = []

    def __enter__(self) -> list[Tensor]:
        merger, merge = self.visual.merger, self.visual.spatial_merge_size**2

        def capture(features: Tensor) -> Tensor:
            # Qwen2.5-VL permutes groups of patches into windows, and its tokens back again. What
            # this returns is permuted in place of the tokens.
            return features.unflatten(0, (-1, merge))

        self._forward, merger.forward = vars(merger).get("forward"), capture
        self._handle = self.visual.register_forward_hook(self._keep)
        return self.captured

    def _keep(self, _: nn.Module, inputs: Any, output: Any) -> None:
        self.captured.append(output.pooler_output.flatten(0, 1))

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()
        del self.visual.merger.forward
        if self._forward is not None:  # set by accelerate, if parts are on several devices
            self.visual.merger.forward = self._forward
