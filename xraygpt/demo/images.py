"""The images of a session: uploads, examples, and images that the model has read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from xraygpt.common.errors import InputError, without_path
from xraygpt.datasets.input_check import InputCheck
from xraygpt.demo.clips import open_clip
from xraygpt.demo.display import DisplayedImage, open_image, viewer_html
from xraygpt.demo.sessions import MAX_IMAGES, ImageKey, Session, Sessions
from xraygpt.media.base import Media
from xraygpt.media.clip_policy import ClipPolicy, has_frames

_LIMITS_ADVICE = re.compile(r"[,;](?: or)? raise ReadLimits\.\w+(?: if this size is expected)?")


class ImageManager:
    """Adds images to sessions and passes them to the model.

    Args:
        sessions: Sessions of all open pages.
        read_media: Function that reads a file and frame as in training.
        examples: Example files to choose from, with their captions.
        check: The check of images that finds their warnings; None finds none.
        clips: How files with several frames are read; if as images, one frame at a time.
    """

    def __init__(
        self,
        sessions: Sessions[Session],
        read_media: Callable[..., Media],
        examples: Sequence[tuple[Path, str]] = (),
        check: InputCheck | None = None,
        clips: ClipPolicy | None = None,
    ) -> None:
        self.check, self.clips = check, clips or ClipPolicy()
        self.sessions, self.read_media = sessions, read_media
        self.examples = list(examples)

    def add_uploads(self, session: Session, uploads: list[str]) -> list[str]:
        """Move uploaded files into a session.

        Args:
            session: Session that receives the files.
            uploads: Paths in the upload folder.

        Returns:
            An error message for each file that was not added.
        """
        errors = []
        for number, upload in enumerate(uploads, start=1):
            path = _new_path(session)
            try:
                self.sessions.move_upload(Path(upload), path)
            except InputError as error:
                errors.append(f"File {number} {error}")
                continue
            errors += self._add(session, path, f"File {number}")
        return errors

    def add_example(self, session: Session, number: int) -> list[str]:
        """Start a new case with an example image.

        Returns:
            Error messages, as in `add_uploads`.
        """
        if not 0 <= number < len(self.examples):
            raise InputError("there is no such example")
        if session.images:
            session.clear()
        path = _new_path(session)
        shutil.copyfile(self.examples[number][0], path)
        return self._add(session, path, "The example")

    def _add(self, session: Session, path: Path, name: str) -> list[str]:
        try:
            if len(session.images) >= MAX_IMAGES:
                raise InputError(
                    f"a conversation can have at most {MAX_IMAGES} images; use Clear all first"
                )
            session.images.append(self._open(path, f"Image {len(session.images) + 1}"))
        except BaseException as error:
            path.unlink(missing_ok=True)
            if not isinstance(error, InputError):
                raise
            # The limits are fixed here, so the advice to raise them is removed.
            return [_LIMITS_ADVICE.sub("", without_path(error, path, name))]
        session.selected = len(session.images) - 1
        return []

    def _open(self, path: Path, name: str) -> DisplayedImage:
        if self.clips.as_clips and has_frames(path):
            return open_clip(path, self.clips, name)
        return open_image(path, self.check)

    @property
    def hint(self) -> str:
        """What a page without images asks for."""
        what = "images or clips" if self.clips.as_clips else "a chest X-ray"
        return f"Upload {what}{', or pick an example' if self.examples else ''}."

    def prefill(self, session: Session) -> str:
        """Run new images through the model, so that the first answer starts sooner.

        Returns:
            Text for the status line.
        """
        if not session.lock.acquire(blocking=False):
            return ""
        try:
            self.sessions.free_old_caches()
            self.update_model_images(session)
            count = session.conversation.prefill()
        finally:
            session.lock.release()
        status = f"Image read by the model ({count} tokens)." if count else "Image added."
        num_images = len(session.images)
        if num_images > 1:
            doubt = "" if self.clips.as_clips else "; a model trained on single images may fail"
            status += f" This case has {num_images} images{doubt}. Clear all starts another case."
        if session.draft is not None:
            status += " The draft was made without this image: make a new draft."
        return status

    def update_model_images(self, session: Session) -> None:
        """Add missing images to the conversation, with their displayed frames.

        Images about which no question has been asked yet are replaced.
        """
        history = session.conversation.history
        used = session.model_images[: history[-1].total_media if history else 0]
        needed: list[ImageKey] = [
            (i, image.model_frame)
            for i, image in enumerate(session.images)
            if i == session.selected or all(i != index for index, _ in used)
        ]
        new = [key for key in needed if key not in used]
        if session.model_images == [*used, *new]:
            return
        session.conversation.remove_pending_images()
        session.model_images = used
        for index, frame in new:
            medium = self.read_media(session.images[index].path, frame)
            session.conversation.add_image(medium, f"Image {index + 1}")
            session.model_images.append((index, frame))

    def viewer(self, session: Session) -> str:
        """Return the HTML of the viewer."""
        image = session.selected_image
        if image is None:
            return viewer_html(None, self.hint)
        label = f"Image {session.selected + 1} of {len(session.images)}: {image.description()}"
        return viewer_html(image, label, session.heat.get((session.selected, image.model_frame)))


def _new_path(session: Session) -> Path:
    return session.folder / f"image-{os.urandom(8).hex()}"
