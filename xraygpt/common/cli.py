"""What every command shares: its arguments, its log, and one line for a user's mistake."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable
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
    parser.add_argument("--cfg-path", required=True, help="the YAML of this run")
    parser.add_argument(
        "--options",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override keys, e.g. run.max_steps=20",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved YAML, stop")
    parser.add_argument("--dry-run", action="store_true", help="build all, one batch, stop")
    return parser


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
    add("--gpu-id", "--gpu_id", type=int, default=None, help="the same as --device cuda:N")


def device_of(args: argparse.Namespace) -> str:
    """The device a command line names."""
    gpu = args.gpu_id
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
