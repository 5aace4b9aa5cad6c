"""Output folders that have a manifest and appear only when they are complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xraygpt.common.checkpoint import write_manifest
from xraygpt.common.errors import InputError, WeightsError


def require_new_folder(out: Path) -> None:
    """Check that an output folder is absent or empty; called before anything is loaded.

    Raises:
        InputError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists; choose another name")


def publish_folder(out: Path, write: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Create the folder `out` atomically.

    Args:
        out: The folder to create.
        write: Function that writes the files into the empty folder it is given.
        facts: Entries to store in the manifest in addition to the list of files.

    Raises:
        InputError: `out` already exists or cannot be written.
    """
    require_new_folder(out)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with report_write_errors(out):
            write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        for path in temporary.rglob("*"):
            if path.is_file():  # some writers create files that only the owner can read
                path.chmod(0o666 & ~umask)
        write_manifest(temporary, **facts)
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def report_write_errors(out: Path) -> Iterator[None]:
    """Context manager that turns errors from weight writers into an `InputError` about `out`."""
    try:
        yield
    except WeightsError:
        raise
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{out} cannot be written: {error}") from None
