"""Checkpoints that are whole or not there: written aside, hashed, fsynced, renamed.

A checkpoint is ``<run>/checkpoints/step-N/`` with MANIFEST.json (SHA-256 and size of every other
file, written last). The loader takes the newest one whose manifest verifies and says which it
passed over.
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


def publish(run: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make ``checkpoints/step-<step>``; until the last rename nothing can be mistaken for it.

    Args:
        run: The run folder.
        step: Optimizer steps done.
        write: Fills the empty folder it is given.

    Raises:
        TrainingError: It cannot be written (disk full); earlier checkpoints are untouched.
    """
    folder = run / FOLDER
    target, aside = folder / f"step-{step}", folder / f"step-{step}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write(aside)
        seal(aside, step=step)
        if target.exists():  # left by an earlier attempt, perhaps damaged: this one is whole
            shutil.rmtree(target)
        aside.rename(target)
        _sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise TrainingError(
            f"cannot save step {step} under {folder}: {error}. Earlier checkpoints are intact; "
            "make room and resume with run.resume_ckpt_path"
        ) from None
    return target


def seal(folder: Path, **facts: Any) -> None:
    """Write the manifest of a finished folder, and all of it through to the disk.

    Args:
        folder: Holds its files.
        facts: What the manifest says beside their sizes and SHA-256.
    """
    files = {
        str(p.relative_to(folder)): {"sha256": digest(p), "size": p.stat().st_size}
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not _sealed_apart(p.parent, folder)
    }
    write_file(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=1))
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sealed_apart(place: Path, folder: Path) -> bool:
    """Whether a folder within `folder` has a manifest of its own."""
    return place != folder and ((place / MANIFEST).is_file() or _sealed_apart(place.parent, folder))


def manifest_of(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says; empty if there is none."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def prune(run: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the best, and what crashed saves left."""
    folder = run / FOLDER
    best = best_step(run)
    steps = sorted(_steps(folder))
    for step in steps[:-keep] if keep else steps:
        if step != best:
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
    for left in folder.glob("step-*.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)


def forget_after(run: Path, step: int) -> None:
    """Remove what an abandoned continuation left: later checkpoints, and a best among them."""
    for later in _steps(run / FOLDER):
        if later > step:
            shutil.rmtree(run / FOLDER / f"step-{later}", ignore_errors=True)
    best = best_step(run)
    if best is not None and best > step:
        (run / FOLDER / BEST).unlink(missing_ok=True)


def mark_best(run: Path, step: int, metric: str, value: float) -> None:
    """Note that `step` has the best `metric` so far."""
    write_file(run / FOLDER / BEST, json.dumps({"step": step, "metric": metric, "value": value}))


def best_step(run: Path) -> int | None:
    """The step noted by `mark_best`, if any."""
    try:
        return int(json.loads((run / FOLDER / BEST).read_text())["step"])
    except (OSError, ValueError, KeyError):
        return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` means.

    Args:
        path: A checkpoint folder; a run folder (its newest that verifies); ``<run>/best``; or a
            folder of runs (its newest run that has one), also with ``/best``.

    Raises:
        WeightsError: Nothing there verifies; names what was passed over and why.
    """
    want_best = path.name == "best" and not path.exists()
    base = path.parent if want_best else path
    if (base / MANIFEST).is_file() or _STEP.match(base.name):
        verify(base)
        return base
    passed: list[str] = []
    for run in _runs(base):
        step = best_step(run) if want_best else None
        steps = [step] if step is not None else sorted(_steps(run / FOLDER), reverse=True)
        for number in steps:
            candidate = run / FOLDER / f"step-{number}"
            try:
                verify(candidate)
            except WeightsError as error:
                passed.append(str(error))
                continue
            if passed:
                log.warning("passed over damaged checkpoints: %s", "; ".join(passed))
            return candidate
    why = f" ({'; '.join(passed)})" if passed else ""
    if not base.exists():
        why = f": there is no such folder (a relative path starts at {Path.cwd()})"
    raise WeightsError(f"no usable checkpoint in {path}{why}")


def has_checkpoint(path: Path) -> bool:
    """Whether `find_checkpoint` would find one in the folder of runs `path`."""
    return any(_steps(run / FOLDER) for run in _runs(path))


def is_run_like(path: Path) -> bool:
    """Whether `path` is a checkpoint, a run, a folder of runs, or `best` of one."""
    base = path.parent if path.name == "best" and not path.exists() else path
    return (base / MANIFEST).is_file() or bool(_runs(base))


def run_of(checkpoint: Path) -> Path:
    """The run folder a checkpoint lies in."""
    return checkpoint.parent.parent


def verify(checkpoint: Path, only: str | None = None) -> None:
    """Check every file against the manifest, or `only` one.

    Raises:
        WeightsError: The manifest is absent, or a file is missing or changed.
    """
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"{checkpoint} has no readable {MANIFEST}") from None
    for name, facts in files.items():
        if only not in (None, name):
            continue
        path = checkpoint / name
        if not path.is_file():
            raise WeightsError(f"{checkpoint}: {name} is missing")
        size = path.stat().st_size
        if size != facts["size"]:
            raise WeightsError(
                f"{checkpoint}: {name} is damaged: {size} bytes, {facts['size']} in {MANIFEST}"
            )
        found = digest(path)
        if found != facts["sha256"]:
            raise WeightsError(
                f"{checkpoint}: {name} is damaged (its SHA-256 differs): {found}, "
                f"{facts['sha256']} in {MANIFEST}"
            )


def write_file(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new content, never a part."""
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.replace(path)


def _runs(base: Path) -> list[Path]:
    """`base` if it is a run, else the runs in it, newest first by their date."""
    if (base / FOLDER).is_dir():
        return [base]
    found = [p.parent for p in base.glob(f"*/{FOLDER}")] if base.is_dir() else []
    return sorted(found, key=lambda p: p.name, reverse=True)


def _steps(folder: Path) -> list[int]:
    found = (_STEP.match(p.name) for p in folder.iterdir()) if folder.is_dir() else iter(())
    return [int(m[1]) for m in found if m]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
