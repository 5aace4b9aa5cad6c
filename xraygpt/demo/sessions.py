"""Sessions of open pages, each with its images, conversation, study and private folders.

A session ends when its page is closed, after a long idle time, or when the program ends. Its
folder is deleted with it, and nothing is written elsewhere.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.conversation import Conversation
from xraygpt.demo.display import DisplayedImage
from xraygpt.demo.study_work import StudyWork
from xraygpt.tasks.payload import Payload

log = logging.getLogger(__name__)

PREFIX = "xraygpt-demo-"
"""Start of the private folder's name, before the process id."""
MAX_SESSIONS, MAX_IMAGES, MAX_ENDED = 64, 8, 4096
"""Maximum numbers of open pages, images per conversation and remembered ended sessions."""
IDLE_SECONDS = 45 * 60
"""Idle time after which a session is closed and its files are deleted."""
STRAY_SECONDS = 10 * 60
"""Age at which an upload that no session uses is deleted."""
EMPTY_SECONDS = 20
"""Age at which an empty upload file is deleted; younger files may still be being written."""
MAX_CACHED = 8
"""Number of conversations that keep their caches; others recompute theirs."""
ImageKey = tuple[int, int | None]
"""Index of an image in its session, and number of the frame; None for a clip."""


@dataclass(frozen=True)
class Draft:
    """A drafted report and how it was made.

    Attributes:
        index: Index of the draft in the conversation's history.
        text: The whole text.
        findings: Findings as the model wrote them.
        impression: Impression as the model wrote it.
        prompt: The question that asked for the draft.
        decoding: Decoding settings in words.
        seed: Sampling seed; None without sampling.
        ended: Reason why the draft ended: ``end``, ``length`` (cut off) or ``cancelled`` (stopped).
        images: Descriptions of the images that the model had read.
        payload: Predicted findings and remarks on sentences.
    """

    index: int
    text: str
    findings: str
    impression: str
    prompt: str
    decoding: str
    seed: int | None
    ended: str
    images: list[str]
    payload: Payload = field(default_factory=Payload)


class PageSession:
    """The session of one open page.

    Args:
        folder: Its private folder.

    Attributes:
        study: The study that is analysed.
        last_used: Time of the last request, by `time.monotonic`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.study = StudyWork(folder.with_name(f"{folder.name}-study"))
        self.last_used = time.monotonic()

    @property
    def is_unused(self) -> bool:
        """Whether nothing would be lost if the session ended."""
        return not self.study.num_files

    @property
    def is_busy(self) -> bool:
        """Whether something is being computed."""
        return self.study.lock.locked()

    def free_cache(self) -> None:
        """Free memory that can be computed again; here there is none."""

    def stop_all(self) -> None:
        """Stop everything that is being computed."""
        self.study.stop()

    def end(self) -> None:
        """Stop everything and delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.study.end()


class Session(PageSession):
    """The session of an open page with a chat model.

    Attributes:
        images: The uploaded images, in order.
        selected: Index of the displayed image.
        model_images: The images in the conversation, in their order there.
        draft: The drafted report; None before the first draft.
        heat: Attention maps of the last selected words, in [0, 1].
        lock: Held while an answer is computed.
        last_ticket: Ticket of the last question; each queued question has its own ticket.
        stopped_ticket: Questions with a ticket up to this one are not started.
    """

    def __init__(self, folder: Path, conversation: Conversation) -> None:
        super().__init__(folder)
        self.conversation = conversation
        self.lock = threading.Lock()
        self.last_ticket = self.stopped_ticket = 0
        self.reset()

    def reset(self) -> None:
        """Forget the images, draft and maps; the conversation is unchanged."""
        self.images: list[DisplayedImage] = []
        self.selected = 0
        self.model_images: list[ImageKey] = []
        self.draft: Draft | None = None
        self.heat: dict[ImageKey, np.ndarray] = {}

    @property
    def selected_image(self) -> DisplayedImage | None:
        """The displayed image, or None without images."""
        return self.images[self.selected] if self.images else None

    @property
    def is_unused(self) -> bool:
        """Whether nothing would be lost if the session ended."""
        return super().is_unused and not self.images and not self.conversation.history

    @property
    def is_busy(self) -> bool:
        """Whether something is being computed."""
        return super().is_busy or self.lock.locked()

    def require_image(self) -> DisplayedImage:
        """Return the displayed image.

        Raises:
            InputError: There is no image.
        """
        if self.selected_image is None:
            raise InputError("upload an X-ray or choose an example first")
        return self.selected_image

    def next_ticket(self) -> int:
        """Return a ticket for a question that is about to be queued."""
        self.last_ticket += 1
        return self.last_ticket

    def is_stopped(self, ticket: int | None) -> bool:
        """Return whether a queued question was stopped before it started."""
        return ticket is not None and ticket <= self.stopped_ticket

    def stop(self) -> None:
        """Stop the current answer and all queued questions."""
        self.stopped_ticket = self.last_ticket
        self.conversation.cancel()

    @contextmanager
    def stopped(self, seconds: float = 30) -> Iterator[bool]:
        """Context manager that stops answering and yields whether it locked the session in time."""
        self.stop()
        acquired = self.lock.acquire(timeout=seconds)
        try:
            yield acquired
        finally:
            if acquired:
                self.lock.release()

    def clear(self) -> None:
        """Stop answering and delete the conversation and the files.

        Raises:
            InputError: The answer does not stop in time.
        """
        with self.stopped() as acquired:
            if not acquired:
                raise InputError("the last answer has not stopped yet; try again")
            self.conversation.clear()
            self.delete_files()
            self.folder.mkdir(mode=0o700)
            self.reset()

    def delete_files(self) -> None:
        """Delete the uploaded images."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def free_cache(self) -> None:
        """Free the conversation's cache.

        Raises:
            InputError: An answer is being generated.
        """
        self.conversation.free_cache()

    def stop_all(self) -> None:
        """Stop the answer and the analysis."""
        super().stop_all()
        self.stop()

    def end(self) -> None:
        """Stop everything and delete the files."""
        self.study.stop()
        self.delete_files()
        with self.stopped():
            self.reset()
            self.delete_files()
        super().end()


S = TypeVar("S", bound=PageSession)


class Sessions(Generic[S]):
    """The sessions of all open pages, and the folder with their files.

    Args:
        new: Makes the session of a page in a private folder.
    """

    def __init__(self, new: Callable[[Path], S]) -> None:
        self.new = new
        _delete_leftovers()
        self.root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))  # mode 0700
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._open: dict[str, S] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()  # recent keys and the reason
        self._moved: dict[str, Path] = {}  # Gradio's hash of the content -> where it was moved
        self._lock = threading.Lock()
        self._closing = threading.Event()
        atexit.register(self.close)
        threading.Thread(target=self._cleanup_loop, daemon=True).start()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: str | None) -> S:
        """Return the session of a page, creating it if necessary.

        Raises:
            InputError: The session has ended, or too many pages are open.
        """
        if not key:
            raise InputError("the request has no session; open the page in a browser")
        with self._lock:
            if key in self._ended:
                raise InputError(
                    f"{self._ended[key]}, and its images were deleted; reload the page"
                )
            session = self._open.get(key)
            if session is None:
                self._make_room()
                folder = Path(tempfile.mkdtemp(dir=self.root, prefix="session-"))
                session = self._open[key] = self.new(folder)
            session.last_used = time.monotonic()
        return session

    def _make_room(self) -> None:
        """Close an unused page if too many are open."""
        if len(self._open) < MAX_SESSIONS:
            return
        for key, session in list(self._open.items()):
            if session.is_unused:
                shutil.rmtree(session.folder, ignore_errors=True)
                del self._open[key]
                return
        raise InputError("too many people have this page open; try again later")

    def move_upload(self, upload: Path, target: Path) -> None:
        """Move an uploaded file into a session.

        Gradio names upload folders by a keyed hash of their content, so the same image uploaded
        twice has the same path. The file is moved the first time, and copied after that.

        Raises:
            InputError: The file was not uploaded here or no longer exists.
        """
        path = upload.resolve()
        if path.parent.parent != self.uploads.resolve() or upload.is_symlink() or path.is_dir():
            raise InputError("is not an uploaded file")
        key = path.parent.name
        moved = self._moved.get(key)
        try:
            if path.is_file():
                shutil.move(path, target)
                with suppress(OSError):
                    path.parent.rmdir()
            elif moved is not None:
                shutil.copyfile(moved, target)
            else:
                raise FileNotFoundError
        except FileNotFoundError:
            raise InputError("no longer exists; upload it again") from None
        with self._lock:
            self._moved[key] = target

    def free_old_caches(self) -> None:
        """Free the caches of conversations that have not been used recently."""
        with self._lock:
            by_use = sorted(self._open.values(), key=lambda s: s.last_used, reverse=True)
        for session in by_use[MAX_CACHED:]:
            try:
                session.free_cache()
            except InputError:  # an answer is being generated
                continue

    def end(self, key: str | None, reason: str = "the connection to this page was lost") -> None:
        """Stop a session's answer and delete its files; later requests fail with the reason."""
        if not key:
            return
        with self._lock:
            session = self._open.pop(key, None)
            self._ended[key] = reason
            while len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)
        if session is not None:
            session.end()

    def close(self) -> None:
        """End all sessions and delete the folder."""
        self._closing.set()
        for session in list(self._open.values()):
            session.stop_all()
        for session in list(self._open.values()):
            session.study.end()  # a thread that still computes at exit would crash Python
        shutil.rmtree(self.root, ignore_errors=True)
        self._open.clear()
        atexit.unregister(self.close)

    def _cleanup_loop(self) -> None:
        while not self._closing.wait(10):
            try:
                self.clean_up()
            except Exception as error:  # try again next time
                log.error("cannot delete old files: %s", type(error).__name__)

    def clean_up(self) -> None:
        """End idle sessions and delete unused uploads."""
        now = time.monotonic()
        for key, session in list(self._open.items()):
            if now - session.last_used > IDLE_SECONDS and not session.is_busy:
                self.end(key, "this page was idle for too long")
        self.delete_stray_uploads(STRAY_SECONDS)
        with self._lock:
            self._moved = {key: path for key, path in self._moved.items() if path.exists()}

    def delete_stray_uploads(self, max_age: float) -> None:
        """Delete uploads older than `max_age` seconds, and Gradio's empty files."""
        for path in self.uploads.iterdir():
            try:
                status = path.stat()
                age = time.time() - status.st_mtime
                if path.is_dir() and age > max_age:
                    shutil.rmtree(path, ignore_errors=True)
                elif path.is_file() and age > (max_age if status.st_size else EMPTY_SECONDS):
                    path.unlink(missing_ok=True)
            except FileNotFoundError:  # moved into a session meanwhile
                continue


def _delete_leftovers() -> None:
    """Delete the folders left by killed processes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        try:
            pid = int(folder.name.removeprefix(PREFIX).split("-")[0])
            if folder.stat().st_uid != os.getuid():
                continue
            os.kill(pid, 0)
        except ProcessLookupError:
            log.info("deleted the files of an earlier demo: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError):
            continue
