"""Builds the media part of batches for stock models."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xraygpt.media.base import Media
from xraygpt.media.stored import name_bytes, name_of, stored_layout, with_pixels
from xraygpt.models.stock_vlm.family import Family
from xraygpt.models.stock_vlm.media_input import Layout
from xraygpt.prompting.renderer import Run


class StockCollator:
    """Counts the tokens of media by their size, and processes their pixels in batches.

    `stack` returns, for the N media of a batch in the order of their samples:

    - ``pixel_values``: (ΣP, …) patches or tiles of the media with pixels;
    - ``features``: (ΣP, W) features of the media from the cache;
    - ``layouts``: the packed layouts, one after the other, and ``layout_sizes``: (N,) their sizes;
    - ``rows``: (N,) P of each medium, negative for features from the cache;
    - ``names``: (N, 16) uint8, the names under which features are to be stored, or zeros.
    """

    def __init__(self, family: Family, *, shrink: bool) -> None:
        self.family, self.may_shrink = family, shrink

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        """Return the token runs of one sample's media."""
        return [Run(len(layout.ids), layout.kind) for layout in self.family.layouts(media)]

    def resized(self, media: Sequence[Media]) -> list[tuple[int, int]]:
        """Return the height and width in pixels of each medium of one sample after resizing."""
        return [self.family.resized(layout) for layout in self.family.layouts(media)]

    def shrink(self, media: Sequence[Media], tokens: int) -> list[Media] | None:
        """Return smaller copies of one sample's media.

        Args:
            media: All media of the sample.
            tokens: The number of tokens that all of them may take together.

        Returns:
            The copies, which may still be too large, or None if media cannot be reduced.
        """
        if not self.may_shrink or tokens < 1:
            return None
        media = [with_pixels(medium) for medium in media]  # features cannot be resized
        layouts = self.family.layouts(media)
        factor = tokens / sum(len(layout.ids) for layout in layouts)
        pairs = zip(media, layouts, strict=True)
        smaller = [self.family.shrink(medium, layout, factor) for medium, layout in pairs]
        return None if any(m is None for m in smaller) else [m for m in smaller if m is not None]

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        """Build the media inputs of a batch; see the class."""
        pairs = [
            pair
            for media in samples
            for pair in zip(media, self.family.layouts(media), strict=True)
        ]
        return self._stack(pairs, range(len(pairs)))

    def contexts(self, media: Sequence[Media]) -> list[Hashable]:
        """Return what the tokens of each medium depend on, apart from the medium: its grid."""
        return [layout.grid for layout in self.family.layouts(media)]

    def stack_part(self, media: Sequence[Media], indices: Sequence[int]) -> dict[str, Tensor]:
        """Build the inputs of some of a sample's media, with their layouts among all of them.

        Args:
            media: All media of the sample.
            indices: Which of them are encoded. If empty, the inputs are the layouts of all media,
                without pixels, which suffices for `embed` with given tokens and for `positions`.
        """
        pairs = list(zip(media, self.family.layouts(media), strict=True))
        if not indices:
            return _layout_inputs([layout for _, layout in pairs])
        return self._stack(pairs, indices)

    def _stack(
        self, pairs: Sequence[tuple[Media, Layout]], indices: Iterable[int]
    ) -> dict[str, Tensor]:
        pixels: list[Tensor] = []
        features: list[Tensor] = []
        rows: list[int] = []
        chosen = [pairs[i] for i in indices]
        for medium, layout in chosen:
            stored = stored_layout(medium) is not None
            values = medium.data if stored else self.family.pixels(medium, layout)
            (features if stored else pixels).append(values)
            rows.append(-len(values) if stored else len(values))
        inputs = {
            "rows": torch.tensor(rows),
            "names": torch.tensor([name_bytes(m) for m, _ in chosen], dtype=torch.uint8),
            **_layout_inputs([layout for _, layout in chosen]),
        }
        if pixels:
            inputs["pixel_values"] = torch.cat(pixels)
        if features:
            inputs["features"] = torch.cat(features)
        return inputs


def _layout_inputs(layouts: Sequence[Layout]) -> dict[str, Tensor]:
    packed = [layout.pack() for layout in layouts]
    return {
        "layouts": torch.cat(packed),
        "layout_sizes": torch.tensor([len(values) for values in packed]),
    }


def unpack_layouts(inputs: Mapping[str, Tensor]) -> list[Layout]:
    """Return the layouts of the media of a batch."""
    packed = inputs["layouts"].tolist()
    layouts, start = [], 0
    for size in inputs["layout_sizes"].tolist():
        layouts.append(Layout.unpack(packed[start : start + size]))
        start += size
    return layouts


@dataclass(frozen=True)
class StackedMedia:
    """The result of `StockCollator.stack`, by medium.

    Attributes:
        layouts: The layouts.
        pixels: For each medium, its pixels, or None.
        features: For each medium, its features from the cache, or None.
        names: For each medium, the name under which its features are to be stored, or "".
    """

    layouts: list[Layout]
    pixels: list[Tensor | None]
    features: list[Tensor | None]
    names: list[str]


def unstack(inputs: dict[str, Tensor]) -> StackedMedia:
    """Split the inputs of a batch into its media."""
    counts: list[int] = inputs["rows"].tolist()
    parts = {
        "pixel_values": [n for n in counts if n >= 0],
        "features": [-n for n in counts if n < 0],
    }
    queues = {
        name: iter(inputs[name].split(sizes)) if name in inputs else iter(())
        for name, sizes in parts.items()
    }
    return StackedMedia(
        unpack_layouts(inputs),
        [next(queues["pixel_values"]) if n >= 0 else None for n in counts],
        [next(queues["features"]) if n < 0 else None for n in counts],
        [name_of(values) for values in inputs["names"].tolist()],
    )
