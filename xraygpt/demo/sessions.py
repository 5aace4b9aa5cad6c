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
from pathlib import Path

from xraygpt.common.errors import InputError
from xraygpt.conversation import ChatEngine, Conversation
from xraygpt.demo.films import Film

log = logging.getLogger(__name__)

MOST_SESSIONS, MOST_FILMS = 64, 8
"""Pages open at once; images in one conversation."""
IDLE_SECONDS = 45 * 60
"""After this long without a click the files are deleted."""
STRAY_SECONDS = 10 * 60
"""After this long an upload that no page took is deleted."""
EMPTY_SECONDS = 20
"""After this long an empty file there is none that is being written."""
WARM = 8
"""Conversations that keep what they have computed; others compute it again."""


class Session:
    """One open page.

    Attributes:
        films: Uploaded, in order.
        at: Which of them is shown.
        shown: (film, frame) of every image the conversation holds, in its order.
        draft: Which exchange is the draft of the report; None before.
        drafted: What the model wrote: findings and impression.
        heat: Maps of the words last asked for, by (film, frame).
        seed: Of the answer last given; None where nothing was drawn.
        question: With which the draft was asked for.
        how: Decoding of the draft, in words.
    """

    def __init__(self, folder: Path, conversation: Conversation) -> None:
        self.folder, self.conversation = folder, conversation
        self.lock = threading.Lock()  # one answer at a time
        self.used = time.monotonic()
        self.reset()

    def reset(self) -> None:
        """As if just opened, but for the conversation."""
        self.films: list[Film] = []
        self.at = 0
        self.shown: list[tuple[int, int]] = []
        self.draft: int | None = None
        self.drafted = ("", "")
        self.heat: dict[tuple[int, int], object] = {}
        self.seed: int | None = None
        self.question = self.how = ""

    @property
    def film(self) -> Film | None:
        """The one that is shown."""
        return self.films[self.at] if self.films else None

    def wait_idle(self, seconds: float = 30) -> bool:
        """Stop the answer under way, and wait until it has stopped."""
        self.conversation.cancel()
        if not self.lock.acquire(timeout=seconds):
            return False
        self.lock.release()
        return True

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
        self.root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))  # mode 0700
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._open: dict[str, Session] = {}
        self._expired: set[str] = set()
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
            if key in self._expired:
                self._expired.discard(key)
                raise InputError(
                    "this page was idle for long, and its images were deleted; upload them again"
                )
            session = self._open.get(key)
            if session is None:
                if len(self._open) >= MOST_SESSIONS:
                    raise InputError("too many people have this page open; try again later")
                folder = Path(tempfile.mkdtemp(dir=self.root, prefix="session-"))
                session = self._open[key] = Session(folder, self.engine.start())
            session.used = time.monotonic()
        return session

    def cool_down(self) -> None:
        """Free what conversations have computed that were not used lately."""
        with self._lock:
            by_use = sorted(self._open.values(), key=lambda s: s.used, reverse=True)
        for session in by_use[WARM:]:
            try:
                session.conversation.forget()
            except InputError:  # it is answering
                continue

    def end(self, key: str | None, expired: bool = False) -> None:
        """Stop a session's answer and delete its files."""
        with self._lock:
            session = self._open.pop(key or "", None)
            if session is not None and expired:
                self._expired.add(key or "")
        if session is None:
            return
        session.wait_idle()
        session.reset()
        session.delete_files()

    def close(self) -> None:
        """End all sessions and delete the folder."""
        self._stop.set()
        for key in list(self._open):
            self._open[key].conversation.cancel()
        shutil.rmtree(self.root, ignore_errors=True)
        self._open.clear()
        atexit.unregister(self.close)

    def _reap(self) -> None:
        while not self._stop.wait(10):
            now = time.monotonic()
            for key, session in list(self._open.items()):
                if now - session.used > IDLE_SECONDS and not session.lock.locked():
                    self.end(key, expired=True)
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


_PREFIX = "xraygpt-demo-"


def _sweep_leftovers() -> None:
    """Delete what a killed program has left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        try:
            pid = int(folder.name.removeprefix(_PREFIX).split("-")[0])
            if folder.stat().st_uid != os.getuid():
                continue
            os.kill(pid, 0)
        except ProcessLookupError:
            log.info("deleted what an earlier demo left: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError):
            continue
