"""nnU-Net as a process of another Python environment.

The process runs in a group of its own, so that its workers can be stopped with it. It stops itself
if the process that started it ends.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xraygpt.common.errors import InputError

log = logging.getLogger(__name__)

HOW_TO_INSTALL = (
    "create an environment for it: python3 -m venv nnunet_env && nnunet_env/bin/pip install "
    "nnunetv2==2.8.1, then give nnunet_env/bin/python"
)
# Ends the process and its workers as soon as standard input is closed.
_CODE = """
import os, signal, threading
def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder
predict_entry_point_modelfolder()
"""
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Killed)\b")
_NOT_THE_CAUSE = "Background workers died"
_KEPT_LINES = 200
_SECONDS_TO_STOP = 5.0
_OWN_VARIABLES = ("PYTHONPATH", "PYTHONHOME")  # those of this process do not suit the other one


def predict(
    python: Path, model: Path, arguments: Sequence[str], folder: Path, on_case: Callable[[], None]
) -> None:
    """Run nnU-Net's prediction from a model folder, and wait for its end.

    Args:
        python: Interpreter of the environment with nnU-Net.
        model: Folder of the trained model.
        arguments: Further ones of ``nnUNetv2_predict_from_modelfolder``.
        folder: Working folder of the process, which also takes the place of nnU-Net's folders.
        on_case: Called when a case was predicted.

    Raises:
        InputError: nnU-Net cannot be started, or it failed.
    """
    command = [str(python.absolute()), "-c", _CODE, "-m", str(model.absolute()), *arguments]
    try:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(os.environ, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(
            f"{python} cannot be started: {error.strerror}; {HOW_TO_INSTALL}"
        ) from None
    lines = deque[str](maxlen=_KEPT_LINES)
    try:
        assert child.stdout is not None
        for line in child.stdout:
            log.debug("nnU-Net: %s", line.rstrip())
            lines.append(line.rstrip())
            if line.startswith("done with "):
                on_case()
        code = child.wait()
    finally:
        _stop(child)
    if code:
        raise InputError(_explain(python, model, code, lines))


def _environment(variables: Mapping[str, str], folder: Path) -> dict[str, str]:
    own = {name: value for name, value in variables.items() if name not in _OWN_VARIABLES}
    places = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    return {**own, **dict.fromkeys(places, str(folder)), "PYTHONUNBUFFERED": "1"}


def _stop(child: subprocess.Popen[str]) -> None:
    """End the process and all of its workers, if any are left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS: the latter for a group of zombies
            break
        try:
            child.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            continue
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()
    child.wait()


def _explain(python: Path, model: Path, code: int, lines: Sequence[str]) -> str:
    """Return why the process failed, in one sentence."""
    if any("No module named 'nnunetv2'" in line for line in lines):
        return f"nnU-Net is not installed for {python}; {HOW_TO_INSTALL}"
    if code < 0:
        return (
            f"nnU-Net was ended by the signal {signal.Signals(-code).name} with the model {model}; "
            "the usual cause is a lack of memory"
        )
    said = [line.strip() for line in lines if line.strip()]
    causes = [line for line in said if _ERROR.match(line) and _NOT_THE_CAUSE not in line]
    reason = (causes or said or [f"exit code {code} without a message"])[-1]
    no_gpu = any(word in reason for word in ("CUDA", "NVIDIA"))
    on_cpu = "; use device: cpu on a machine without a GPU" if no_gpu else ""
    return f"nnU-Net failed with the model {model}: {reason}{on_cpu}"
