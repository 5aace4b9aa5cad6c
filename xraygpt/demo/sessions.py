"""Who has the page open: their images, their conversation, their private folder.

A session ends when its page is closed, when it was idle for long, and when the program ends; its
folder goes with it. Nothing of it is written anywhere else.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.conversation import ChatEngine, Conversation
from xraygpt.demo.display import DisplayedImage

log = logging.getLogger(__name__)

PREFIX = "xraygpt-demo-"
"""Of the private folder's name; the process that made it follows."""
MOST_SESSIONS, MOST_FILMS, MOST_ENDED = 64, 8, 4096
"""Pages open at once; images in one conversation; pages remembered to have ended."""
IDLE_SECONDS = 45 * 60
"""After this long without a click the files are deleted."""
STRAY_SECONDS = 10 * 60
"""After this long an upload that no page took is deleted."""
EMPTY_SECONDS = 20
"""After this long an empty file there is none that is being written."""
WARM = 8
"""Conversations that keep what they have computed; others compute it again."""


@dataclass(frozen=True)
class Draft:
    """The draft of a report, and what made it.

    Attributes:
        turn: Which exchange it is.
        findings: As the model wrote them.
        impression: Likewise.
        prompt: It was asked for with.
        decoding: In words.
        seed: None where nothing was drawn.
        ended: ``end``, ``length`` (cut off) or ``cancelled`` (stopped).
        images: That the model had read, a line each.
    """

    turn: int
    findings: str
    impression: str
    prompt: str
    decoding: str
    seed: int | None
    ended: str
    images: list[str]


class Session:
    """One open page.

    Attributes:
        films: Uploaded, in order.
        at: Which of them is shown.
        shown: (film, frame) of every image the conversation holds, in its order.
        draft: Of the report; None before.
        heat: Maps of the words last asked for, by (film, frame).
        lock: Held by whoever computes: one answer at a time.
        ticket: Of the question last asked; a question that waits for its turn knows its own.
        stopped: Questions up to this ticket do not begin any more.
    """

    def __init__(self, folder: Path, conversation: Conversation) -> None:
        self.folder, self.conversation = folder, conversation
        self.lock = threading.Lock()
        self.ticket = self.stopped = 0
        self.used = time.monotonic()
        self.reset()

    def reset(self) -> None:
        """As if just opened, but for the conversation."""
        self.films: list[DisplayedImage] = []
        self.at = 0
        self.shown: list[tuple[int, int]] = []
        self.draft: Draft | None = None
        self.heat: dict[tuple[int, int], np.ndarray] = {}

    @property
    def film(self) -> DisplayedImage | None:
        """The one that is shown."""
        return self.films[self.at] if self.films else None

    def begin(self) -> int:
        """The ticket of a question that is about to wait for its turn."""
        self.ticket += 1
        return self.ticket

    def stop(self) -> None:
        """Stop the answer under way, and what waits."""
        self.stopped = self.ticket
        self.conversation.cancel()

    @contextmanager
    def alone(self, seconds: float = 30) -> Iterator[bool]:
        """Stop what computes, and hold the session; whether that came to pass in time."""
        self.stop()
        held = self.lock.acquire(timeout=seconds)
        try:
            yield held
        finally:
            if held:
                self.lock.release()

    def delete_files(self) -> None:
        """Delete what was uploaded."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """All open pages, and the folder that holds their files.

    Args:
        engine: Talks.
    """

    def __init__(self, engine: ChatEngine) -> None:
        self.engine = engine
        _sweep_leftovers()
        self.root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))  # mode 0700
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._open: dict[str, Session] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()  # lately, and why
        self._twins: dict[str, Path] = {}  # by Gradio's hash of their content
        self._lock = threading.Lock()
        self._stop = threading.Event()
        atexit.register(self.close)
        threading.Thread(target=self._reap, daemon=True).start()

    def __len__(self) -> int:
        return len(self._open)

    def of(self, key: str | None) -> Session:
        """The session of a page; a new one if it has none yet.

        Raises:
            InputError: It has expired, or there are too many.
        """
        if not key:
            raise InputError("the request names no session; open the page in a browser")
        with self._lock:
            if key in self._ended:
                raise InputError(
                    f"{self._ended[key]}, and its images were deleted; reload the page"
                )
            session = self._open.get(key)
            if session is None:
                self._make_room()
                folder = Path(tempfile.mkdtemp(dir=self.root, prefix="session-"))
                session = self._open[key] = Session(folder, self.engine.start())
            session.used = time.monotonic()
        return session

    def _make_room(self) -> None:
        """Pages nobody has used yet make room for others."""
        if len(self._open) < MOST_SESSIONS:
            return
        for key, session in list(self._open.items()):
            if not session.films and not session.conversation.exchanges:
                session.delete_files()
                del self._open[key]
                return
        raise InputError("too many people have this page open; try again later")

    def take(self, upload: Path, kept: Path) -> None:
        """Move an upload to where it is kept.

        Gradio names folders by a keyed hash of what is in them, so the same picture uploaded twice
        has one place, which the first taker empties; the second takes a copy of the first's.

        Raises:
            InputError: It was not uploaded here, or is no longer there.
        """
        place = upload.resolve()
        if place.parent.parent != self.uploads.resolve() or upload.is_symlink() or place.is_dir():
            raise InputError("is no upload")
        key = place.parent.name
        twin = self._twins.get(key)
        try:
            if place.is_file():
                shutil.move(place, kept)
                with suppress(OSError):
                    place.parent.rmdir()
            elif twin is not None:
                shutil.copyfile(twin, kept)
            else:
                raise FileNotFoundError
        except FileNotFoundError:
            raise InputError("is no longer there; upload it again") from None
        with self._lock:
            self._twins = {k: path for k, path in self._twins.items() if path.exists()}
            self._twins[key] = kept

    def cool_down(self) -> None:
        """Free what conversations have computed that were not used lately."""
        with self._lock:
            by_use = sorted(self._open.values(), key=lambda s: s.used, reverse=True)
        for session in by_use[WARM:]:
            try:
                session.conversation.forget()
            except InputError:  # it is answering
                continue

    def end(self, key: str | None, why: str = "the connection to this page was lost") -> None:
        """Stop a session's answer and delete its files; the page, if it is still there, is told."""
        if not key:
            return
        with self._lock:
            session = self._open.pop(key, None)
            self._ended[key] = why
            while len(self._ended) > MOST_ENDED:
                self._ended.popitem(last=False)
        if session is not None:
            session.delete_files()
            with session.alone():
                session.reset()
                session.delete_files()

    def close(self) -> None:
        """End all sessions and delete the folder."""
        self._stop.set()
        for session in list(self._open.values()):
            session.stop()
        shutil.rmtree(self.root, ignore_errors=True)
        self._open.clear()
        atexit.unregister(self.close)

    def _reap(self) -> None:
        while not self._stop.wait(10):
            try:
                self.reap()
            except Exception as error:  # the next round may fare better
                log.error("deleting old files: %s", type(error).__name__)

    def reap(self) -> None:
        """End the sessions that were idle for long, delete the uploads that nobody took."""
        now = time.monotonic()
        for key, session in list(self._open.items()):
            if now - session.used > IDLE_SECONDS and not session.lock.locked():
                self.end(key, "this page was idle for long")
        self.delete_strays(STRAY_SECONDS)

    def delete_strays(self, older_than: float) -> None:
        """Delete uploads that nobody took for so many seconds, and the empty files of Gradio's."""
        for path in self.uploads.iterdir():
            try:
                status = path.stat()
                age = time.time() - status.st_mtime
                if path.is_dir() and age > older_than:
                    shutil.rmtree(path, ignore_errors=True)
                elif path.is_file() and age > (older_than if status.st_size else EMPTY_SECONDS):
                    path.unlink(missing_ok=True)
            except FileNotFoundError:  # taken meanwhile
                continue


def _sweep_leftovers() -> None:
    """Delete what a killed program has left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        try:
            pid = int(folder.name.removeprefix(PREFIX).split("-")[0])
            if folder.stat().st_uid != os.getuid():
                continue
            os.kill(pid, 0)
        except ProcessLookupError:
            log.info("deleted what an earlier demo left: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError):
            continue
