"""Start our commands in children forked from a process that has imported torch already.

`run` and `Popen` stand for those of `subprocess`, for commands that begin with this Python. Most
of a short command's time is the import of torch and transformers. Here a server, one for each test
process, imports them once, keeps to one thread and then does nothing but fork: each child is a
process of its own, with its own environment, folder, arguments and standard files, and SIGKILL ends
it as it ends any other.

What differs from a cold start: heavy modules are there before the first line, nobody but
`PYTHONPATH` can change what Python itself does, and all children of one server have one hash seed.
Hence each entry point is also started cold by some test, and of the runs that are compared to the
bit one is a cold one.
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
# What a training or an evaluation imports sooner or later; no plug-ins, nothing with a command.
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


# --- the side of the tests -------------------------------------------------------------------


class _Server:
    """The process that forks, as a test process sees it."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            subprocess.Popen(
                [sys.executable, "-m", "tests.processes", str(theirs.fileno())],
                cwd=REPO,
                env=os.environ | dict.fromkeys(ONE_THREAD, "1"),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self._line.close)  # which ends it

    def fork(self, request: dict[str, Any], files: Sequence[int]) -> int:
        """A child with these files as 0, 1 and 2; how it ended comes through the fourth."""
        with self._lock, _written(json.dumps(request).encode()) as body:
            socket.send_fds(self._line, [b"fork"], [body, *files])
            answer = self._line.recv(64)
        assert answer, "the server that forks has ended"
        return int(answer)


@contextlib.contextmanager
def _written(content: bytes) -> Iterator[int]:
    """A file of memory: an environment may be longer than a packet."""
    number = os.memfd_create("request")
    try:
        os.write(number, content)
        yield number
    finally:
        os.close(number)


@cache
def _server(_owner: int) -> _Server:
    return _Server()


class Popen(subprocess.Popen):
    """`subprocess.Popen`, but forked; `args` begins with this Python."""

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
        said = os.read(self._ended, 64)
        os.close(self._ended)
        assert said, "the server that forks has ended"
        return self.pid, int(said)

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
    **how: Any,
) -> subprocess.CompletedProcess:
    """`subprocess.run`, but forked."""
    if input is not None:
        how["stdin"] = subprocess.PIPE
    if capture_output:
        how["stdout"] = how["stderr"] = subprocess.PIPE
    with Popen(args, **how) as process:
        try:
            said = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, *said)
    if check:
        done.check_returncode()
    return done


def run_world(size: int, args: Sequence[Any], *, env: dict[str, str], timeout: float) -> None:
    """So many ranks of one gloo world, as torchrun would start them; all must end well."""
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


# --- the server ------------------------------------------------------------------------------


def serve(line: socket.socket) -> None:
    """Fork whatever is asked for, until the tests' end of the line is closed."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    ends: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([line, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while ends and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                end = ends.pop(ended[0])
                with contextlib.suppress(BrokenPipeError):
                    os.write(end, str(ended[1]).encode())
                os.close(end)
        if line in ready:
            message, files, _, _ = socket.recv_fds(line, 64, 8)
            if not message:
                break
            request = json.loads(os.pread(files[0], os.fstat(files[0]).st_size, 0))
            assert len(list(Path("/proc/self/task").iterdir())) == 1, (
                "only a process of one thread may fork"
            )
            pid = os.fork()
            if not pid:
                for number in (line.fileno(), woken, wake, *ends.values()):
                    os.close(number)
                _become(request, files)
            for number in files[:4]:
                os.close(number)
            ends[pid] = files[4]
            line.send(str(pid).encode())
    for pid in ends:
        os.kill(pid, signal.SIGKILL)


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """In the child: be the process that was asked for, and end."""
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
    own = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [*own, *(p for p in sys.path[1:] if p not in server_path)]
    importlib.invalidate_caches()
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    os._exit(_code_of(request["args"]))


def _code_of(args: list[str]) -> int:
    """Run a command line to its end, exit handlers included; its exit code."""
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
        importlib.import_module("openai")  # of an extra
    gc.collect()
    gc.freeze()  # so that a collection in a child copies no pages
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
