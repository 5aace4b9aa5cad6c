"""What every command shares: its arguments, its log, and one line for a user's mistake."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.common.memory import keep_freed_memory
from xraygpt.common.threads import wait_asleep

log = logging.getLogger(__name__)

_ELSEWHERE = (
    "; name a folder of your own: run.output_dir, --output or --out for results, "
    "XRAYGPT_CACHE for stored features and drawings"
)
REMEDIES = {
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.ENOSPC: "; make room and type the same again: what was finished is kept",
}


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """The arguments train.py and evaluate.py share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cfg-path", type=readable, required=True, metavar="YAML", help="the YAML of this run"
    )
    add_overrides(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved YAML, stop")
    parser.add_argument("--dry-run", action="store_true", help="build all, one batch, stop")
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--options`."""
    parser.add_argument(
        "--options",
        nargs="*",
        action="extend",
        type=_override,
        default=[],
        metavar="KEY=VALUE",
        help="override keys, e.g. run.max_steps=20",
    )


def _override(text: str) -> str:
    if not text.partition("=")[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: expected key.path=value")
    return text


# What follows are types of arguments. They are checked before anything that loads torch, so that a
# typing error is answered at once.


def add_imports(parser: argparse.ArgumentParser) -> None:
    """`--imports`."""
    parser.add_argument(
        "--imports", nargs="*", default=[], metavar="MODULE", help="modules with plug-ins"
    )


def import_plugins(modules: Sequence[str]) -> None:
    """Import what `--imports` names.

    Raises:
        InputError: One of them cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"--imports {module}: {error}") from None


def readable(text: str) -> Path:
    """The path of a file that can be read.

    Raises:
        argparse.ArgumentTypeError: It cannot.
    """
    try:
        with Path(text).open("rb"):
            return Path(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text}: {error.strerror}") from None


def existing(text: str) -> Path:
    """The path of a file or a folder that is there.

    Raises:
        argparse.ArgumentTypeError: It is not.
    """
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return Path(text)


def at_least(low: int) -> Callable[[str], int]:
    """The type of a whole number, `low` or more."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"{value}: must be at least {low}")
        return value

    return parse


def above_zero(text: str) -> float:
    """A finite number above 0.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and finite")
    return value


def shard(text: str) -> tuple[int, int]:
    """`3/16` -> (3, 16).

    Raises:
        argparse.ArgumentTypeError: Not such a share.
    """
    k, slash, n = text.partition("/")
    if not (k.isdecimal() and slash and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with 1 <= K <= N, 3/16 for example")
    return int(k), int(n)


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, and the lineage's `--gpu-id`."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--gpu-id", "--gpu_id", type=at_least(0), default=None, help="the same as --device cuda:N")


def device_of(args: argparse.Namespace) -> str:
    """The device a command line names; whether this machine has it is not asked.

    Raises:
        InputError: It is no name of a device, or there are two of them.
    """
    gpu = args.gpu_id
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", args.device):
        raise InputError(f"--device {args.device}: one of auto, cpu, cuda, cuda:N")
    if gpu is None:
        return str(args.device)
    if args.device not in ("auto", f"cuda:{gpu}"):
        raise InputError("--gpu-id and --device name two devices; keep one")
    return f"cuda:{gpu}"


def guarded(main: Callable[[], Any]) -> int:
    """Run `main`; a user's mistake is one message on stderr and an exit code, not a trace."""
    level = logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    # An optional kernel that would be fetched from a hub; PEFT imports bitsandbytes in any run.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' shard bars
    keep_freed_memory()
    wait_asleep()
    try:
        main()
    except XrayGPTError as error:
        # A loader's worker wraps the message into its own traceback; the last line is ours.
        text = str(error)
        log.error("%s", text.strip().splitlines()[-1] if "Original Traceback" in text else text)
        return error.exit_code
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "")
        log.error("%s: %s%s", error.filename or "system", error.strerror or error, remedy)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; what was written stays")
        return 130
    return 0
