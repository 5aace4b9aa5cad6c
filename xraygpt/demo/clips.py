"""Clips on the page, with exactly the frames that the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xraygpt.demo.cine_player import player_html
from xraygpt.demo.display import LIMITS, DisplayedImage, thumbnail
from xraygpt.media.base import Media, read_media_file
from xraygpt.media.clip_policy import ClipPolicy
from xraygpt.studies.report import Clip

PLAYER_SIDE = 640
"""Maximum side of a frame in the browser, in pixels."""
_UNKNOWN_RATE = 10  # frames per second of a file without times


@dataclass
class DisplayedClip(DisplayedImage):
    """A clip, which a player shows.

    Attributes:
        player: HTML of the player.
        poster: The middle frame, (H, W) or (H, W, 3) uint8, for exports.
        shown: Number of frames that the model reads.
        total: Number of frames in the file.
    """

    player: str = ""
    poster: np.ndarray | None = None
    shown: int = 0
    total: int = 0

    @property
    def model_frame(self) -> int | None:
        """None, since the model reads the clip and not one frame."""
        return None

    @property
    def file_window(self) -> None:
        """None, since a player has no window."""
        return

    def show_frame(self, frame: int) -> None:
        """Do nothing: the player shows all frames."""

    def pixels(self) -> np.ndarray:
        """Return the middle frame."""
        assert self.poster is not None
        return self.poster

    def description(self, frame: int | None = None) -> str:
        """Describe the clip in one line, without information about the patient."""
        return _describe(self.size, self.shown, self.total)


def open_clip(path: Path, clips: ClipPolicy, name: str) -> DisplayedClip:
    """Open a file with several frames.

    Args:
        path: The file.
        clips: Which of its frames are read.
        name: Its name in the player.

    Raises:
        DataError: The file is not a clip that can be read.
    """
    media = read_media_file(clips.ref(path), limits=LIMITS, uint8=True)
    frames = np.stack([thumbnail(frame, PLAYER_SIDE) for frame in media.data.numpy()])
    rows, columns = media.size or frames.shape[1:3]
    shown, total = len(frames), media.clip.total_frames if media.clip else len(frames)
    caption = _describe((rows, columns), shown, total)
    return DisplayedClip(
        path,
        num_frames=1,
        meta={**media.meta, "rows": rows, "columns": columns},
        player=player_html([_as_clip(media, frames, name, caption)]),
        poster=frames[shown // 2],
        shown=shown,
        total=total,
    )


def _as_clip(media: Media, frames: np.ndarray, name: str, caption: str) -> Clip:
    times = media.frame_times
    duration = (media.clip.duration if media.clip else None) or len(frames) / _UNKNOWN_RATE
    return Clip(
        name=name,
        caption=caption,
        frames=frames,
        duration=duration,
        times=None if times is None else np.array(times),
    )


def _describe(size: tuple[int, int], shown: int, total: int) -> str:
    read = f"{total} frames" if shown == total else f"{shown} of {total} frames"
    return f"clip, {size[1]} × {size[0]} pixels, {read}"
