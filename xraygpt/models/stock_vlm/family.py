"""What differs between the families of stock models: processors, vision towers and positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from xraygpt.boxes.spelling import SpellingName
from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.models.stock_vlm.media_input import Layout

Part = Literal["vision", "projector", "language"]
PARTS: tuple[Part, ...] = ("vision", "projector", "language")


class Family:
    """A family of transformers' image-text-to-text models.

    Args:
        network: The model, such as `Qwen2_5_VLForConditionalGeneration`.
        processor: Its processor.

    Attributes:
        model_types: `config.model_type` of the models.
        prefixes: Beginnings of the weights' names in the vision tower and the projector; all other
            weights belong to the language model.
        splits: Whether the tower can be run without the projector, so that its output can be
            cached while the projector is trained.
        boxes: How boxes are written in the text, see `boxes.spelling`.
    """

    model_types: ClassVar[tuple[str, ...]]
    prefixes: ClassVar[dict[Part, tuple[str, ...]]]
    splits: ClassVar[bool] = True
    boxes: ClassVar[SpellingName] = "thousand"

    def __init__(self, network: Any, processor: Any) -> None:
        self.network, self.processor = network, processor
        config = network.config
        self.image_id = int(getattr(config, "image_token_id", None) or config.image_token_index)
        self.video_id = int(getattr(config, "video_token_id", None) or config.video_token_index)

    def part_of(self, name: str) -> Part:
        """Return the part of the model that a weight belongs to."""
        for part in ("projector", "vision"):
            if name.startswith(self.prefixes[part]):
                return part
        return "language"

    def is_unused(self, name: str) -> bool:
        """Return whether a weight has no influence on the tokens, and cannot be trained."""
        return False

    @property
    def llm(self) -> Any:
        """A causal language model that reads embeddings of width W."""
        return self.network

    def layouts(self, media: Sequence[Media]) -> list[Layout]:
        """Return the layout of each medium of one sample, without processing its pixels.

        Raises:
            DataError: The model cannot read a medium, because of its kind or its size.
        """
        raise NotImplementedError

    def context(self, kinds: Sequence[str]) -> str:
        """Return what the layouts of a sample's media depend on, apart from each medium."""
        return ""

    def resized(self, layout: Layout) -> tuple[int, int]:
        """Return the height and width in pixels of a resized image, frame or tile."""
        raise NotImplementedError

    def pixels(self, medium: Media, layout: Layout) -> Tensor:
        """Return the (P, …) pixels of a medium, made by the model's own processor."""
        raise NotImplementedError

    def tower(self, pixels: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
        """Encode the concatenated pixels of media.

        Returns:
            For each medium, features of shape (P, …), without the projector if `splits`.
        """
        raise NotImplementedError

    def project(self, features: Tensor, layout: Layout) -> Tensor:
        """Project a medium's features to (L', W), where L' counts `image_id` and `video_id`."""
        raise NotImplementedError

    def positions(
        self, ids: Tensor, mask: Tensor, grids: Tensor, seconds: Tensor, clips: Tensor
    ) -> Tensor | None:
        """Return (A, B, T) position ids, or None for a decoder that numbers its tokens.

        Args:
            ids: (B, T) ids with `image_id` and `video_id` at the media's tokens.
            mask: (B, T), 1 for tokens.
            grids: (N, 3) grids of all media, row by row.
            seconds: (N,) seconds between steps of the temporal grid.
            clips: (N,) bool, whether a medium is a clip.
        """
        return None

    def set_pixels(
        self, kind: Literal["image", "video"], low: int | None, high: int | None
    ) -> None:
        """Set the smallest and largest number of pixels of an image or frame after resizing.

        Raises:
            InputError: The family has images of a fixed size.
        """
        raise NotImplementedError

    def read_size(self, layout: Layout) -> tuple[int, int]:
        """Return the height and width in pixels of the image or frame that the tower reads."""
        return layout.grid[1], layout.grid[2]

    def shrink(self, medium: Media, layout: Layout, factor: float) -> Media | None:
        """Return a smaller copy with about `factor` times the tokens; None if impossible."""
        return None

    @property
    def towers(self) -> list[nn.Module]:
        """The modules of the vision tower, which are kept in evaluation mode if frozen."""
        raise NotImplementedError


def refuse_kind(medium: Media) -> DataError:
    """Return the error for a medium that is neither an image nor a clip."""
    return DataError(
        f"this model reads images and clips, but a medium is of kind '{medium.kind}'; set its "
        "`kind` to clip to read a volume slice by slice"
    )
