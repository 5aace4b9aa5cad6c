"""How files with several frames are read when neither a table nor the user says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xraygpt.common.errors import DataError
from xraygpt.media.base import MediaRef
from xraygpt.media.frame_sampling import FrameSampling
from xraygpt.media.pixels import frame_count
from xraygpt.media.video_containers import has_video_suffix, is_video


@dataclass(frozen=True)
class ClipPolicy:
    """Which files are clips, and which of their frames are read.

    Attributes:
        as_clips: Whether a DICOM file with several frames is a clip. Otherwise it is an image, its
            first frame. Videos are clips in either case.
        sampling: The frames to read of clips without a `sampling` of their own; None reads all.
    """

    as_clips: bool = False
    sampling: FrameSampling | None = None

    def ref(self, path: Path | str, frame: int | None = None) -> MediaRef:
        """Return a reference to a file.

        Args:
            path: The file, which need not be readable.
            frame: One frame to read as an image, from 0; None reads the whole file.
        """
        if frame is not None:
            return MediaRef(path, index=frame, kind="image")
        if is_video(Path(path)) or (self.as_clips and has_frames(Path(path))):
            return self.sampled(MediaRef(path, kind="clip"))
        return self.sampled(MediaRef(path))

    def sampled(self, ref: MediaRef) -> MediaRef:
        """Return a reference with `sampling`, if it is to a clip without its own."""
        every_frame = self.sampling is None or self.sampling == FrameSampling()
        if ref.kind != "clip" or ref.sampling is not None or every_frame:
            return ref
        return ref._replace(sampling=self.sampling)


def has_frames(path: Path) -> bool:
    """Return whether a file is a video or has several frames; False if it cannot be read."""
    if has_video_suffix(str(path)) or is_video(path):
        return True
    try:
        return frame_count(path) > 1
    except DataError:
        return False
