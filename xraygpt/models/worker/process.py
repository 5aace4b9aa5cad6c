"""A worker as a running program: starting it, asking it, and saying why it stopped.

The protocol is described in ``workers/protocol.py``: one JSON object per line in each direction.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xraygpt.common.errors import InputError

PROTOCOL = 1
_SHOWN = 3  # last lines of the log in messages


@dataclass(frozen=True)
class Description:
    """What a worker says of itself.

    Attributes:
        model: Name of the model.
        revision: Its revision.
        tasks: Tasks that it can do.
    """

    model: str
    revision: str
    tasks: tuple[str, ...]


class WorkerProcess:
    """A running worker.

    Args:
        command: Program and arguments.
        environment: Variables in addition to those of this process.
        log: File for what the worker prints.
        startup_timeout: Seconds until it must have loaded its model.
        timeout: Seconds that one answer may take.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        startup_timeout: float,
        timeout: float,
    ) -> None:
        self.log, self.timeout = log, timeout
        self._asked = (
            0  # ids are unique in the process, so that no late answer is taken for another
        )
        with _open_log(log) as errors:
            try:
                self._process = subprocess.Popen(
                    list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    env={**os.environ, **environment}, text=True, encoding="utf-8",
                    errors="replace", start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise InputError(
                    f"cannot start the worker {command[0]} (model.python): {error.strerror}"
                ) from None
        atexit.register(self.close)
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        try:
            self.description = self._describe(startup_timeout)
        except BaseException:
            self.close()
            raise

    def _read(self, out: IO[str]) -> None:
        try:
            for line in out:
                self._lines.put(line)
        finally:
            self._lines.put(None)

    def _describe(self, timeout: float) -> Description:
        row = self._next(timeout)
        if row.get("protocol") != PROTOCOL or not isinstance(row.get("tasks"), list):
            raise InputError(
                f"the worker does not speak protocol {PROTOCOL}: its first line was "
                f"{json.dumps(row)[:100]} (workers/protocol.py describes it)"
            )
        model, revision = (str(row.get(name, "")) for name in ("model", "revision"))
        return Description(model, revision, tuple(map(str, row["tasks"])))

    @property
    def is_running(self) -> bool:
        """Whether it can be asked; a worker that failed to answer is ended."""
        return self._process.poll() is None

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the answers to requests, in their order; an answer may be an error.

        Whatever goes wrong ends the worker, so that no answer can be taken for another's.

        Args:
            requests: Requests without ids.

        Raises:
            InputError: The worker stopped, did not answer in time, or wrote something else.
        """
        try:
            return self._ask(requests)
        except BaseException:
            self.close(patience=0.1)
            raise

    def _ask(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        names = [str(self._asked + i) for i in range(len(requests))]
        self._asked += len(requests)
        lines = [json.dumps({"id": n, **r}) for n, r in zip(names, requests, strict=True)]
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n".join([*lines, "", ""]))
            self._process.stdin.flush()
        except OSError:
            raise InputError(self._stopped()) from None
        answers: dict[str, dict[str, Any]] = {}
        while len(answers) < len(requests):
            row = self._next(self.timeout)
            name = row.get("id")
            if name not in names or name in answers:
                raise InputError(
                    f"the worker answered with the id {name!r}, which was not asked; an answer has "
                    "the id of its request (workers/protocol.py)"
                )
            answers[name] = row
        return [answers[name] for name in names]

    def _next(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise InputError(
                f"the worker gave no answer for {timeout:g} s (model.startup_timeout and "
                f"model.timeout); what it printed is in {self.log}"
            ) from None
        if line is None:
            raise InputError(self._stopped())
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError(
                f"the worker wrote a line to stdout that is no JSON object: {line.strip()[:80]!r}; "
                "everything but answers belongs on stderr"
            )
        return row

    def _stopped(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        text = self.log.read_text(encoding="utf-8", errors="replace").strip()
        last = " / ".join(text.splitlines()[-_SHOWN:]) or "nothing"
        return (
            f"the worker stopped with exit code {self._process.returncode}; the end of {self.log} "
            f"is: {last}"
        )

    def close(self, patience: float = 5.0) -> None:
        """End the worker.

        Args:
            patience: Seconds until a worker that does not end by itself is killed.
        """
        atexit.unregister(self.close)
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with contextlib.suppress(OSError):  # also the programs that it started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _open_log(path: Path) -> IO[bytes]:
    """Open a log that only its owner can read: it may quote texts."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    except OSError as error:
        raise InputError(f"cannot write the worker's log {path}: {error.strerror}") from None
