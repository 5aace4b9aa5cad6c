"""Folders for others: whole, sealed with a manifest, or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xraygpt.common.checkpoint import seal
from xraygpt.common.errors import InputError, WeightsError


def refuse_taken(out: Path) -> None:
    """Before anything is loaded.

    Raises:
        InputError: Something is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; name another")


def publish_folder(out: Path, write: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Fill `out`; nothing is there until all of it is.

    Args:
        out: The folder to make.
        write: Fills the empty folder it is given.
        facts: What its manifest says beside the files.

    Raises:
        InputError: Something is there, or it cannot be written.
    """
    refuse_taken(out)
    aside = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with writing(out):
            write(aside)
        umask = os.umask(0)
        os.umask(umask)
        for path in aside.rglob("*"):
            if path.is_file():  # some writers leave files that only their owner may read
                path.chmod(0o666 & ~umask)
        seal(aside, **facts)
        if out.is_dir():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """A full disk in the words of whoever wrote becomes one line."""
    try:
        yield
    except WeightsError:
        raise
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{out} cannot be written: {error}") from None
