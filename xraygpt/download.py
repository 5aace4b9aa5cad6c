"""Download public weights from the Hugging Face hub: python -m xraygpt.download vicuna-7b.

    list the named models:       python -m xraygpt.download --list
    any other model on the hub:  python -m xraygpt.download owner/name
    verify downloaded files:     python -m xraygpt.download vicuna-7b --offline

The first download writes the commit and every file's size and SHA-256 to weights.lock.json; later
downloads use that commit and check every file against it. Commit the lock file with your work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from xraygpt.common import hub
from xraygpt.common.checkpoint import file_sha256, write_text_atomic
from xraygpt.common.downloads import SETS
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.hub import FileFacts
from xraygpt.common.registry import did_you_mean

log = logging.getLogger(__name__)

LOCK = "weights.lock.json"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def main() -> None:
    """Parse the command line and download."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(SETS)}, or owner/name")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder for all weights")
    parser.add_argument(
        "--revision", help="commit, tag or branch; default: the commit in the lock file"
    )
    parser.add_argument(
        "--include", nargs="+", metavar="PATTERN", help="download only files that match"
    )
    parser.add_argument("--offline", action="store_true", help="only verify downloaded files")
    parser.add_argument("--list", action="store_true", help="list the named models")
    args = parser.parse_args()
    if args.list or args.name is None:
        width = max(map(len, SETS))
        for name, weights in SETS.items():
            size = f"{weights.gigabytes:5.1f} GB"
            sys.stdout.write(f"{name:{width}} {size}  {weights.licence:44} {weights.repo}\n")
        return
    folder = fetch(args.name, args.out, args.revision, args.include, offline=args.offline)
    use = SETS[args.name].use.format(folder) if args.name in SETS else str(folder)
    sys.stdout.write(f"{folder} is complete and matches {args.out / LOCK}. Use: {use}\n")


def fetch(
    name: str,
    out: Path,
    revision: str | None = None,
    include: list[str] | None = None,
    *,
    offline: bool = False,
) -> Path:
    """Download a model from the hub, or verify that it is complete.

    Args:
        name: A key in `SETS`, or owner/name.
        out: Folder for the lock file and one subfolder per model.
        revision: Commit, tag or branch; None uses the commit in the lock file, or the
            newest commit.
        include: File name patterns; None selects all files except copies in other formats.
        offline: Only verify; do not download anything.

    Returns:
        The model's folder.

    Raises:
        InputError: The model does not exist, or the hub refuses the request.
        WeightsError: A file differs from its entry in the lock file or on the hub.
    """
    repo, folder = _locate(name, out)
    lock = _read_lock(out / LOCK)
    locked = lock.get(repo)
    if offline:
        if locked is None:
            raise WeightsError(
                f"{out / LOCK} has no entry for {repo}: it was never downloaded to {out}"
            )
        _verify(folder, locked["files"])
        return folder
    if locked:
        revision = _locked_revision(repo, locked["revision"], revision, out / LOCK)
        if _is_complete(folder, locked, include):
            return folder
    commit, files = hub.list_files(repo, revision, include)
    if locked:
        _require_unchanged(repo, locked["files"], files)
        if include is None:  # keep files that were once requested with --include
            files = {n: dict(f) for n, f in locked["files"].items()} | files
    _download(repo, commit, files, folder, locked["files"] if locked else {})
    _update_lock(lock, repo, commit, files, is_full=include is None)
    write_text_atomic(out / LOCK, json.dumps(lock, indent=1, sort_keys=True) + "\n")
    return folder


def _locate(name: str, out: Path) -> tuple[str, Path]:
    """Return the repository and the local folder of a model."""
    repo = SETS[name].repo if name in SETS else name
    if not _REPO.fullmatch(repo):
        raise InputError(
            f"'{name}' is neither one of {', '.join(SETS)} nor the owner/name of a model on the hub"
            f"{did_you_mean(name, SETS) if '/' not in name else ''}"
        )
    return repo, out / (name if name in SETS else repo.split("/")[1])


def _download(
    repo: str,
    commit: str,
    files: dict[str, FileFacts],
    folder: Path,
    locked: dict[str, FileFacts],
) -> None:
    """Download missing files, verify all files, and fill in their SHA-256 hashes."""
    missing = sum(f["size"] for n, f in files.items() if not (folder / n).is_file())
    _require_free_space(folder.parent, missing)
    total = sum(f["size"] or 0 for f in files.values()) / 1e9
    log.info("%s at %s: %d files, %.2f GB", repo, commit, len(files), total)
    for file, facts in files.items():
        source = "the lock file" if file in locked else "the hub"
        _fetch_file(repo, commit, file, folder, locked.get(file, facts), source)
        facts["sha256"] = facts["sha256"] or file_sha256(folder / file)


def _update_lock(
    lock: dict[str, Any], repo: str, commit: str, files: dict[str, FileFacts], *, is_full: bool
) -> None:
    entry = lock.setdefault(repo, {"revision": commit, "whole": False, "files": {}})
    entry["whole"] = entry.get("whole", False) or is_full
    for file, facts in files.items():
        entry["files"][file] = {"size": facts["size"], "sha256": facts["sha256"]}


def _locked_revision(repo: str, locked: str, revision: str | None, lock: Path) -> str:
    """Return the commit in the lock file.

    Raises:
        InputError: A different commit is requested.
    """
    if revision in (None, locked):
        return locked
    raise InputError(
        f"{lock} locks {repo} to {locked}, not {revision}; to change that, remove the entry "
        "from the file"
    )


def _is_complete(folder: Path, locked: dict[str, Any], include: list[str] | None) -> bool:
    """Check whether all requested files are downloaded; if so, verify them.

    Raises:
        WeightsError: A file differs from its entry in the lock file.
    """
    if include is None:
        requested = locked["files"]
        is_full = locked.get("whole", False)
    else:
        requested = {n: f for n, f in locked["files"].items() if hub.matches_any(n, include)}
        is_full = bool(requested)
    if not is_full or not all((folder / n).is_file() for n in requested):
        return False
    _verify(folder, requested)
    return True


def _read_lock(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for entry in content.values():
            assert isinstance(entry["revision"], str)
            for name, facts in entry["files"].items():
                hub.require_relative(name)
                assert facts.keys() >= {"size", "sha256"}
    except (ValueError, AttributeError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path} is not a valid lock file: {error!r}") from None
    return content


def _require_unchanged(
    repo: str, locked: dict[str, FileFacts], files: dict[str, FileFacts]
) -> None:
    """Check that the hub has not changed the files of a commit."""
    for name, facts in files.items():
        entry = locked.get(name)
        if entry and facts["sha256"] and facts["sha256"] != entry["sha256"]:
            raise WeightsError(
                f"{repo}: the SHA-256 of {name} is {facts['sha256']} on the hub but "
                f"{entry['sha256']} in the lock file; find out why it changed before you use it"
            )


def _require_free_space(out: Path, size: int) -> None:
    existing = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise InputError(
            f"the download needs {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free at "
            f"{existing}; choose another folder with --out"
        )


def _fetch_file(
    repo: str, commit: str, file: str, folder: Path, expected: FileFacts, source: str
) -> None:
    """Verify a file in `folder`, or download it and rename it once it is verified.

    Raises:
        WeightsError: The file differs from its entry in `source`.
    """
    if (folder / file).is_file():
        _verify_file(folder / file, expected, source)
        return
    part = hub.download_file(repo, commit, file, folder, expected["size"])
    try:
        _verify_file(part, expected, source)
    except WeightsError:
        part.unlink()  # resuming it cannot succeed
        raise
    part.rename(folder / file)


def _verify(folder: Path, files: dict[str, FileFacts]) -> None:
    missing = [n for n in files if not (folder / n).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} of {len(files)} files: {', '.join(missing[:5])}; "
            "repeat the command without --offline"
        )
    for name, facts in files.items():
        _verify_file(folder / name, facts, "the lock file")


def _verify_file(path: Path, expected: FileFacts, source: str) -> None:
    """Compare a file with its entry in `source`.

    Raises:
        WeightsError: The size or SHA-256 differs; the message states both values.
    """
    size = path.stat().st_size
    if expected["size"] is not None and size != expected["size"]:
        raise WeightsError(
            f"{path} has {size} bytes instead of {expected['size']} according to {source}; "
            "delete it and download it again"
        )
    if expected["sha256"] is None:
        if expected.get("git") not in (None, _git_hash(path)):
            raise WeightsError(
                f"{path} differs from the file on {source}; delete it and download it again"
            )
        return
    sha256 = file_sha256(path)
    if sha256 != expected["sha256"]:
        raise WeightsError(
            f"{path} is damaged or a different file: its SHA-256 is {sha256} instead of "
            f"{expected['sha256']} according to {source}; delete it and download it again"
        )


def _git_hash(path: Path) -> str:
    """Return Git's object name of a file: SHA-1 of ``blob <size>``, a zero byte and its content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    import os

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
