"""Atomic checkpoints: written to a temporary folder, hashed, fsynced, then renamed.

A checkpoint is ``<run>/checkpoints/step-N/`` with a MANIFEST.json, which is written last and lists
the SHA-256 and size of every other file. The loader uses the newest checkpoint that passes
verification and logs the ones it skipped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xraygpt.common.errors import TrainingError, WeightsError

log = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
FOLDER = "checkpoints"
BEST = "best.json"
_STEP = re.compile(r"^step-(\d+)$")


def save_checkpoint(run: Path, step: int, write: Callable[[Path], None], **facts: Any) -> Path:
    """Create ``checkpoints/step-<step>`` atomically.

    Args:
        run: The run folder.
        step: Number of completed optimizer steps.
        write: Function that writes the files into the empty folder it is given.
        facts: Entries to store in the manifest.

    Raises:
        TrainingError: The checkpoint cannot be written, e.g. because the disk is full; earlier
            checkpoints are unaffected.
    """
    folder = run / FOLDER
    target, temporary = folder / f"step-{step}", folder / f"step-{step}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write(temporary)
        write_manifest(temporary, step=step, **facts)
        if target.exists():  # left by an earlier attempt and possibly damaged
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(
            f"cannot save step {step} under {folder}: {error}. Earlier checkpoints are intact; "
            "free some space and resume with run.resume_ckpt_path"
        ) from None
    return target


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write the manifest of a finished folder and fsync all of its files.

    Args:
        folder: A folder whose files are complete. Subfolders with their own manifest are skipped.
        facts: Entries to store in addition to the sizes and SHA-256 hashes.
    """
    files = {
        str(p.relative_to(folder)): {"sha256": file_sha256(p), "size": p.stat().st_size}
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not _has_separate_manifest(p.parent, folder)
    }
    write_text_atomic(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=1))
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _has_separate_manifest(subfolder: Path, folder: Path) -> bool:
    return subfolder != folder and (
        (subfolder / MANIFEST).is_file() or _has_separate_manifest(subfolder.parent, folder)
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's manifest; empty if it has no readable manifest."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remove_old_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the best and the `keep` newest checkpoints, and leftovers of crashed saves."""
    folder = run / FOLDER
    best = best_step(run)
    steps = sorted(_steps(folder))
    for step in steps[:-keep] if keep else steps:
        if step != best:
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    for leftover in folder.glob("step-*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_checkpoints_after(run: Path, step: int) -> None:
    """Remove checkpoints later than `step`, and the best-step note if it refers to one of them."""
    for later in _steps(run / FOLDER):
        if later > step:
            shutil.rmtree(run / FOLDER / f"step-{later}", ignore_errors=True)
    best = best_step(run)
    if best is not None and best > step:
        (run / FOLDER / BEST).unlink(missing_ok=True)


def mark_best(run: Path, step: int, metric: str, value: float) -> None:
    """Record that `step` has the best `metric` so far."""
    best = {"step": step, "metric": metric, "value": value}
    write_text_atomic(run / FOLDER / BEST, json.dumps(best))


def best_step(run: Path) -> int | None:
    """Return the step recorded by `mark_best`, or None if there is none."""
    try:
        return int(json.loads((run / FOLDER / BEST).read_text())["step"])
    except (OSError, ValueError, KeyError):
        return None


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that `path` refers to.

    Args:
        path: A checkpoint folder; a run folder (its newest valid checkpoint); ``<run>/best``; or a
            folder of runs (the newest run with a valid checkpoint), also followed by ``/best``.

    Raises:
        WeightsError: No checkpoint there passes verification; the message gives the reason for
            each.
    """
    want_best = path.name == "best" and not path.exists()
    base = path.parent if want_best else path
    if (base / MANIFEST).is_file() or _STEP.match(base.name):
        verify_manifest(base)
        return base
    failures: list[str] = []
    for run in _runs(base):
        for candidate in _candidates(run, want_best):
            try:
                verify_manifest(candidate)
            except WeightsError as error:
                failures.append(str(error))
                continue
            if failures:
                log.warning("skipped damaged checkpoints: %s", "; ".join(failures))
            return candidate
    reason = f" ({'; '.join(failures)})" if failures else ""
    if not base.exists():
        reason = f": there is no such folder (relative paths are resolved from {Path.cwd()})"
    raise WeightsError(f"no usable checkpoint in {path}{reason}")


def peek_checkpoint(path: Path) -> Path | None:
    """Return the folder that `find_checkpoint` tries first, without verifying it; None if none."""
    want_best = path.name == "best" and not path.exists()
    base = path.parent if want_best else path
    if (base / MANIFEST).is_file() or _STEP.match(base.name):
        return base if base.is_dir() else None
    return next((c for run in _runs(base) for c in _candidates(run, want_best)), None)


def _candidates(run: Path, want_best: bool) -> list[Path]:
    """Return the checkpoint folders of a run in the order in which to try them."""
    best = best_step(run) if want_best else None
    steps = [best] if best is not None else sorted(_steps(run / FOLDER), reverse=True)
    return [run / FOLDER / f"step-{step}" for step in steps]


def has_checkpoint(path: Path) -> bool:
    """Check whether the run or folder of runs `path` has any checkpoint, valid or not."""
    return any(_steps(run / FOLDER) for run in _runs(path))


def is_run_or_checkpoint(path: Path) -> bool:
    """Check whether `path` is a checkpoint, a run or a folder of runs, also with ``/best``."""
    base = path.parent if path.name == "best" and not path.exists() else path
    return (base / MANIFEST).is_file() or bool(_runs(base))


def run_of(checkpoint: Path) -> Path:
    """Return the run folder that contains a checkpoint."""
    return checkpoint.parent.parent


def verify_manifest(checkpoint: Path, only: str | None = None) -> None:
    """Check every file, or the file `only`, against the manifest.

    Raises:
        WeightsError: The manifest is missing, or a file is missing or has changed.
    """
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"{checkpoint} has no readable {MANIFEST}") from None
    for name, facts in files.items():
        if only in (None, name):
            _verify_file(checkpoint, name, facts)


def _verify_file(checkpoint: Path, name: str, facts: dict[str, Any]) -> None:
    path = checkpoint / name
    if not path.is_file():
        raise WeightsError(f"{checkpoint}: {name} is missing")
    size = path.stat().st_size
    if size != facts["size"]:
        raise WeightsError(
            f"{checkpoint}: {name} is damaged: it has {size} bytes instead of the "
            f"{facts['size']} in {MANIFEST}"
        )
    sha256 = file_sha256(path)
    if sha256 != facts["sha256"]:
        raise WeightsError(
            f"{checkpoint}: {name} is damaged: its SHA-256 is {sha256} instead of the "
            f"{facts['sha256']} in {MANIFEST}"
        )


def write_text_atomic(path: Path, text: str) -> None:
    """Write a small file so that readers see either the old or the new content."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a small file so that readers see either the old or the new content."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    _sync(temporary)
    temporary.replace(path)


def _runs(base: Path) -> list[Path]:
    """Return `base` if it is a run, else its runs, newest first (their names start with a date)."""
    if (base / FOLDER).is_dir():
        return [base]
    runs = [p.parent for p in base.glob(f"*/{FOLDER}")] if base.is_dir() else []
    return sorted(runs, key=lambda p: p.name, reverse=True)


def _steps(folder: Path) -> list[int]:
    matches = (_STEP.match(p.name) for p in folder.iterdir()) if folder.is_dir() else iter(())
    return [int(m[1]) for m in matches if m]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
