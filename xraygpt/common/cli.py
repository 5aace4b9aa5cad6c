"""Code shared by all commands: arguments, logging, and short messages for user errors."""

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
from xraygpt.common.memory import retain_freed_memory
from xraygpt.common.threads import limit_openmp_spinning

log = logging.getLogger(__name__)

_OTHER_FOLDER = (
    "; choose a writable folder: run.output_dir, --output or --out for results, "
    "XRAYGPT_CACHE for stored features and phantoms"
)
REMEDIES = {
    errno.EROFS: _OTHER_FOLDER,
    errno.EACCES: _OTHER_FOLDER,
    errno.ENOSPC: "; free some space and repeat the command; finished results are kept",
}


def config_parser(doc: str | None) -> argparse.ArgumentParser:
    """Build a parser with the arguments of commands that read a YAML file, such as train.py."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cfg-path",
        type=readable_file,
        required=True,
        metavar="YAML",
        help="YAML file of this run",
    )
    add_overrides(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and exit"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, run one batch and exit"
    )
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--options`."""
    parser.add_argument(
        "--options",
        nargs="*",
        action="extend",
        type=_check_override,
        default=[],
        metavar="KEY=VALUE",
        help="override keys, e.g. run.max_steps=20",
    )


def _check_override(text: str) -> str:
    if not text.partition("=")[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: expected key.path=value")
    return text


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--strict`."""
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse images that do not look like what the model reads, instead of warning",
    )


def refuse_options(args: argparse.Namespace, command: str, *names: str) -> None:
    """Refuse options that have no meaning for a command.

    Raises:
        InputError: One of the options was given.
    """
    for name in names:
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} does not apply to {command}")


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--imports`."""
    parser.add_argument(
        "--imports", nargs="*", default=[], metavar="MODULE", help="modules that contain plug-ins"
    )


def import_plugins(modules: Sequence[str]) -> None:
    """Import the modules given with `--imports`.

    Raises:
        InputError: A module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"--imports {module}: cannot import it: {error}") from None


# The following functions are argument types. They run before anything loads torch, so that the
# user sees a mistake at once.


def readable_file(text: str) -> Path:
    """Parse an argument that is the path of a readable file.

    Raises:
        argparse.ArgumentTypeError: The file cannot be read.
    """
    try:
        with Path(text).open("rb"):
            return Path(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text}: {error.strerror}") from None


def existing_path(text: str) -> Path:
    """Parse an argument that is the path of an existing file or folder.

    Raises:
        argparse.ArgumentTypeError: The path does not exist.
    """
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return Path(text)


def at_least(low: int) -> Callable[[str], int]:
    """Return the argument type for whole numbers of at least `low`."""

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
    """Parse an argument that is a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: `text` is not such a number.
    """
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and finite")
    return value


def shard(text: str) -> tuple[int, int]:
    """Parse a shard argument such as `3/16` as (3, 16).

    Raises:
        argparse.ArgumentTypeError: `text` is not K/N with 1 <= K <= N.
    """
    k, slash, n = text.partition("/")
    if not (k.isdecimal() and slash and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with 1 <= K <= N, e.g. 3/16")
    return int(k), int(n)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `--device` and, as in the original XrayGPT, `--gpu-id`."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--gpu-id", "--gpu_id", type=at_least(0), default=None, help="same as --device cuda:N")


def device_from(args: argparse.Namespace) -> str:
    """Return the requested device, without checking that this machine has it.

    Raises:
        InputError: The device name is invalid, or the two arguments contradict each other.
    """
    gpu = args.gpu_id
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", args.device):
        raise InputError(f"--device {args.device}: must be auto, cpu, cuda or cuda:N")
    if gpu is None:
        return str(args.device)
    if args.device not in ("auto", f"cuda:{gpu}"):
        raise InputError("--gpu-id and --device name different devices; pass only one of them")
    return f"cuda:{gpu}"


def run_main(main: Callable[[], Any]) -> int:
    """Run `main` and return an exit code; user errors are logged without a traceback."""
    level = logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    # PEFT always imports bitsandbytes, which warns about an optional kernel.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' progress bars
    retain_freed_memory()
    limit_openmp_spinning()
    try:
        main()
    except XrayGPTError as error:
        # A data loader worker wraps the message in a traceback, whose last line is the message.
        text = str(error)
        log.error("%s", text.strip().splitlines()[-1] if "Original Traceback" in text else text)
        return error.exit_code
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "")
        log.error("%s: %s%s", error.filename or "system", error.strerror or error, remedy)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; results written so far are kept")
        return 130
    return 0
