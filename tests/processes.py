"""Start this project's commands in children forked from a process that has imported torch.

`run` and `Popen` replace those of `subprocess`, for commands that begin with this Python. Most of
the time of a short command is the import of torch and transformers. A server, one per test process,
imports them once, uses a single thread and only forks: each child is a separate process with its
own environment, folder, arguments and standard files, and is killed like any other.

Differences from a cold start: heavy modules are already imported, no environment variable except
`PYTHONPATH` can change Python itself, and all children of a server have the same hash seed.
Therefore some test also starts each entry point cold, and so does one of the runs whose results
are compared bit by bit.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

REPO = Path(__file__).parent.parent
PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# pandas imports pyarrow if that is installed, whose allocator starts a thread of its own.
NO_ARROW_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Modules that trainings and evaluations import; no plug-ins and no modules with a command.
PRELOADED = (
    "xraygpt.experiment",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "tensorboard.compat.tensorflow_stub.pywrap_tensorflow",
    "jinja2",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "peft",
    "rouge_score.rouge_scorer",
    "sacrebleu.metrics",
    "scipy.optimize",
)


# --- in the test process ---------------------------------------------------------------------


class _Server:
    """Connection from a test process to its forking server."""

    def __init__(self) -> None:
        self._socket, server_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with server_socket:
            subprocess.Popen(
                [sys.executable, "-m", "tests.processes", str(server_socket.fileno())],
                cwd=REPO,
                env=os.environ | dict.fromkeys(ONE_THREAD, "1") | NO_ARROW_THREAD,
                pass_fds=[server_socket.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self._socket.close)  # which ends the server

    def fork(self, request: dict[str, Any], files: Sequence[int]) -> int:
        """Fork a child with `files` as standard files; its exit status is written to the fourth."""
        with self._lock, _memory_file(json.dumps(request).encode()) as body:
            socket.send_fds(self._socket, [b"fork"], [body, *files])
            answer = self._socket.recv(64)
        assert answer, "the forking server has ended"
        return int(answer)


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """A file in memory, because an environment may be larger than a packet."""
    descriptor = os.memfd_create("request")
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


@cache
def _server(_owner: int) -> _Server:
    return _Server()


class Popen(subprocess.Popen):
    """`subprocess.Popen` by forking; `args` must begin with this Python."""

    def _execute_child(self, args: Sequence[Any], *rest: Any) -> None:
        cwd, env, pipes, session = rest[4], rest[5], rest[9:15], rest[20]
        assert args[0] == sys.executable, args
        request = {
            "args": [os.fspath(a) for a in args[1:]],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": session,
        }
        standard = (pipes[0], pipes[3], pipes[5])
        files = [number if f == -1 else f for number, f in enumerate(standard)]
        self._ended, end = os.pipe()
        try:
            self.pid = _server(os.getpid()).fork(request, [*files, end])
            self._child_created = True
        finally:
            os.close(end)
            self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._ended], [], [], 0)[0]:
            return 0, 0
        status = os.read(self._ended, 64)
        os.close(self._ended)
        assert status, "the forking server has ended"
        return self.pid, int(status)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(
    args: Sequence[Any],
    *,
    input: str | bytes | None = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess:
    """`subprocess.run` by forking."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            output = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    result = subprocess.CompletedProcess(args, process.returncode, *output)
    if check:
        result.check_returncode()
    return result


def run_world(size: int, args: Sequence[Any], *, env: dict[str, str], timeout: float) -> None:
    """Run a command in `size` gloo processes, as torchrun would, and check that all succeed."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    ranks = [
        Popen(args, cwd=REPO, env=env | world | {"RANK": str(r), "LOCAL_RANK": str(r)},
              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for r in range(size)
    ]  # fmt: skip
    for rank in ranks:
        with rank:
            try:
                _, errors = rank.communicate(timeout=timeout)
                assert rank.returncode == 0, errors[-3000:]
            except BaseException:
                for other in ranks:
                    other.kill()
                raise


# --- in the server ---------------------------------------------------------------------------


def serve(connection: socket.socket) -> None:
    """Fork children on request, until the test process closes the connection."""
    child_ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    status_files: dict[int, int] = {}  # child -> where to write its exit status
    while True:
        ready, _, _ = select.select([connection, child_ended], [], [])
        if child_ended in ready:
            os.read(child_ended, 4096)
            _report_ended(status_files)
        if connection in ready:
            message, files, _, _ = socket.recv_fds(connection, 64, 8)
            if not message:
                break
            _fork(connection, files, status_files, inherited=(child_ended, wake))
    for pid in status_files:
        os.kill(pid, signal.SIGKILL)


def _report_ended(status_files: dict[int, int]) -> None:
    while status_files and (ended := os.waitpid(-1, os.WNOHANG))[0]:
        status_file = status_files.pop(ended[0])
        with contextlib.suppress(BrokenPipeError):
            os.write(status_file, str(ended[1]).encode())
        os.close(status_file)


def _fork(
    connection: socket.socket,
    files: list[int],
    status_files: dict[int, int],
    *,
    inherited: tuple[int, ...],
) -> None:
    request = json.loads(os.pread(files[0], os.fstat(files[0]).st_size, 0))
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, "only a process with a single thread may fork"
    pid = os.fork()
    if not pid:
        for descriptor in (connection.fileno(), *inherited, *status_files.values()):
            os.close(descriptor)
        _become(request, files)
    for descriptor in files[:4]:
        os.close(descriptor)
    status_files[pid] = files[4]
    connection.send(str(pid).encode())


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """In the child: set up the requested process, run it and exit."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files[1:4]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    if request["session"]:
        os.setsid()
    server_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    extra = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [*extra, *(p for p in sys.path[1:] if p not in server_path)]
    importlib.invalidate_caches()
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    os._exit(_run_to_exit(request["args"]))


def _run_to_exit(args: list[str]) -> int:
    """Run a command line including its exit handlers, and return its exit code."""
    try:
        try:
            _execute(args)
        finally:
            threading._shutdown()
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)  # noqa: T201
            code = 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    else:
        code = 0
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return (code or 0) & 0xFF


def _execute(args: list[str]) -> None:
    if args[0] == "-m":
        sys.argv = args[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    elif args[0] == "-c":
        sys.argv = ["-c", *args[2:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(args[1], "<string>", "exec"), vars(main))
    else:
        sys.argv = args
        sys.path.insert(0, str(Path(args[0]).resolve().parent))
        runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    for _name in PRELOADED:
        importlib.import_module(_name)
    with contextlib.suppress(ImportError):
        importlib.import_module("openai")  # an optional dependency
    gc.collect()
    gc.freeze()  # so that garbage collection in a child copies no pages
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
