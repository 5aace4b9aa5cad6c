"""Fetch public weights from the Hugging Face hub: python -m xraygpt.download vicuna-7b.

    what there is:               python -m xraygpt.download --list
    any other model of the hub:  python -m xraygpt.download owner/name
    check what is here:          python -m xraygpt.download vicuna-7b --offline

The first download writes the commit and every file's size and SHA-256 into weights.lock.json; from
then on that commit is taken and every file checked against it. Commit the lock file with your work.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import logging
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xraygpt.common.checkpoint import digest, write_file
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.registry import did_you_mean

log = logging.getLogger(__name__)

LOCK = "weights.lock.json"
# What is needed of a model: no second copy in another format, no pictures, no notebooks.
_SKIPPED = (
    "*.msgpack", "*.h5", "*.onnx", "*.ot", "*.tflite", "*.ipynb", "*.png", "*.svg", "*.jpg",
    "*.csv", "example_data/*", "onnx/*", "openvino/*", ".gitattributes",
)  # fmt: skip


_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Weights:
    """A named set.

    Attributes:
        repo: Owner and name on the hub.
        use: What to write into a YAML; ``{}`` is the folder.
        licence: As its authors state it.
        gigabytes: Of the files fetched, about; parameters times bytes.
    """

    repo: str
    use: str
    licence: str
    gigabytes: float


SETS = {
    "vicuna-7b": Weights(
        "lmsys/vicuna-7b-v1.5", "model.llama_model: {}", "Llama 2 Community License", 13.5
    ),
    "vicuna-13b": Weights(
        "lmsys/vicuna-13b-v1.5", "model.llama_model: {}", "Llama 2 Community License", 26.0
    ),
    "smollm2": Weights(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "model.llama_model: {}", "Apache-2.0", 0.3
    ),
    "blip2-opt": Weights(
        "Salesforce/blip2-opt-2.7b",
        "model.vit_ckpt: {0} and model.q_former_model: {0}",
        "MIT",
        15.0,
    ),
    "instructblip-7b": Weights(
        "Salesforce/instructblip-vicuna-7b",
        "python -m xraygpt.convert {} OUT, then model.ckpt and model.llama_model",
        "research only: LLaMA, Vicuna and LLaVA data",
        31.7,
    ),
    "biomedclip": Weights(
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "model.vit_model: biomedclip and model.vit_ckpt: {}",
        "MIT",
        0.8,
    ),
    "rad-dino": Weights("microsoft/rad-dino", "model.vit_model: hf/{}", "MIT", 0.35),
}


def main() -> None:
    """Read the command line and fetch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(SETS)}, or owner/name")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder of all weights")
    parser.add_argument("--revision", help="commit, tag or branch; the lock file's if it has one")
    parser.add_argument("--include", nargs="+", metavar="PATTERN", help="these files alone")
    parser.add_argument("--offline", action="store_true", help="fetch nothing, check what is here")
    parser.add_argument("--list", action="store_true", help="the named sets")
    given = parser.parse_args()
    if given.list or given.name is None:
        for name, one in SETS.items():
            sys.stdout.write(f"{name:16} {one.gigabytes:5.1f} GB  {one.licence:44} {one.repo}\n")
        return
    folder = fetch(given.name, given.out, given.revision, given.include, offline=given.offline)
    known = SETS.get(given.name)
    use = known.use.format(folder) if known else str(folder)
    sys.stdout.write(f"{folder}: whole, checked against {given.out / LOCK}. {use}\n")


def fetch(
    name: str,
    out: Path,
    revision: str | None = None,
    include: list[str] | None = None,
    *,
    offline: bool = False,
) -> Path:
    """Bring a model of the hub into `out`, or check that it is there.

    Args:
        name: A key of `SETS`, or owner/name.
        out: Gets a folder a model, and the lock file.
        revision: Commit, tag or branch; None takes the lock file's, or the newest.
        include: Patterns of the files wanted; None takes all but copies in other formats.
        offline: Fetch nothing.

    Returns:
        The model's folder.

    Raises:
        InputError: No such name, or the hub says no.
        WeightsError: A file differs from what the lock file or the hub says of it.
    """
    repo = SETS[name].repo if name in SETS else name
    if not _REPO.fullmatch(repo):
        raise InputError(
            f"'{name}' is none of {', '.join(SETS)}, and no owner/name of the hub"
            f"{did_you_mean(name, SETS) if '/' not in name else ''}"
        )
    folder = out / (name if name in SETS else repo.split("/")[1])
    lock = _read_lock(out / LOCK)
    locked = lock.get(repo)
    if offline:
        if locked is None:
            raise WeightsError(f"{out / LOCK} knows no {repo}: it was never fetched to {out}")
        _check(folder, locked["files"])
        return folder
    if locked:
        revision = _pinned(repo, locked["revision"], revision, out / LOCK)
        if _is_here(folder, locked, include):
            return folder
    commit, files = _listing(repo, revision, include)
    if locked:
        _compare(repo, locked["files"], files)
        if include is None:  # what was once asked for by a pattern of its own stays part of it
            files = {n: dict(f) for n, f in locked["files"].items()} | files
    _room(out, sum(f["size"] for n, f in files.items() if not (folder / n).is_file()))
    log.info("%s at %s: %d files, %.2f GB", repo, commit, len(files), _gigabytes(files))
    known = locked["files"] if locked else {}
    for file, said in files.items():
        whose = "the lock file" if file in known else "the hub"
        _complete(repo, commit, file, folder, known.get(file, said), whose)
        said["sha256"] = said["sha256"] or digest(folder / file)
    entry = lock.setdefault(repo, {"revision": commit, "whole": False, "files": {}})
    entry["whole"] = entry.get("whole", False) or include is None
    for file, said in files.items():
        entry["files"][file] = {"size": said["size"], "sha256": said["sha256"]}
    write_file(out / LOCK, json.dumps(lock, indent=1, sort_keys=True) + "\n")
    return folder


def _pinned(repo: str, locked: str, revision: str | None, lock: Path) -> str:
    """The commit of the lock file.

    Raises:
        InputError: Another one is asked for.
    """
    if revision in (None, locked):
        return locked
    raise InputError(
        f"{lock} holds {repo} at {locked}, not {revision}; to change it, take its entry out of "
        "that file"
    )


def _is_here(folder: Path, locked: dict[str, Any], include: list[str] | None) -> bool:
    """Whether all that is wanted was fetched before; if so it is checked.

    Raises:
        WeightsError: A file is not what the lock file says.
    """
    wanted = {n: f for n, f in locked["files"].items() if include is None or _any(n, include)}
    whole = locked.get("whole", False) if include is None else bool(wanted)
    if not whole or not all((folder / n).is_file() for n in wanted):
        return False
    _check(folder, wanted)
    return True


def _read_lock(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for entry in content.values():
            assert isinstance(entry["revision"], str)
            for name, facts in entry["files"].items():
                _safe(name)
                assert facts.keys() >= {"size", "sha256"}
    except (ValueError, AttributeError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path} is no lock file of this command: {error!r}") from None
    return content


def _listing(
    repo: str, revision: str | None, include: list[str] | None
) -> tuple[str, dict[str, dict[str, Any]]]:
    """The commit and, of each file wanted, its size and what the hub says of its SHA-256."""
    from huggingface_hub import HfApi

    with _hub_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files: dict[str, dict[str, Any]] = {}
    for one in info.siblings or []:
        if not _matches(one.rfilename, include):
            continue
        _safe(one.rfilename)
        sha = one.lfs.sha256 if one.lfs else None  # small files have a git hash alone
        files[one.rfilename] = {"size": one.size, "sha256": sha, "git": one.blob_id}
    if include is None:
        files = _needed(files)
    if not files:
        raise InputError(f"{repo} holds no file that {include or 'this command'} asks for")
    assert info.sha is not None
    return info.sha, files


def _needed(files: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One copy of the weights: safetensors before pickles, and no second model beside the first."""
    if not any(n.endswith(".safetensors") for n in files):
        return files
    pickles = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")
    kept = {n: f for n, f in files.items() if not n.endswith(pickles)}
    if "model.safetensors" in kept:
        others = {n for n in kept if n.endswith(".safetensors") and "/" not in n}
        kept = {n: f for n, f in kept.items() if n not in others - {"model.safetensors"}}
    return kept


def _safe(name: str) -> None:
    """Refuse a file name that leads out of its folder.

    Raises:
        InputError: It does.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise InputError(f"a file is called {name!r}, which leads out of its folder: not fetched")


def _matches(name: str, include: list[str] | None) -> bool:
    return _any(name, include) if include is not None else not _any(name, list(_SKIPPED))


def _any(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _compare(repo: str, locked: dict[str, Any], files: dict[str, Any]) -> None:
    """Refuse a hub that has changed files under one commit."""
    for name, said in files.items():
        known = locked.get(name)
        if known and said["sha256"] and said["sha256"] != known["sha256"]:
            raise WeightsError(
                f"{repo}: the hub says {name} has SHA-256 {said['sha256']}, the lock file "
                f"{known['sha256']}: it was changed; do not use it before you know why"
            )


def _room(out: Path, size: int) -> None:
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise InputError(
            f"{size / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free at {place}; "
            "name another folder with --out"
        )


def _complete(
    repo: str, commit: str, file: str, folder: Path, known: dict[str, Any], whose: str
) -> None:
    """Have one file in `folder`, checked before it gets its name.

    Raises:
        WeightsError: It is not what `whose` entry says.
    """
    if (folder / file).is_file():
        _check_file(folder / file, known, whose)
        return
    part = _bring(repo, commit, file, folder, known["size"])
    try:
        _check_file(part, known, whose)
    except WeightsError:
        part.unlink()  # gone on from, it would never become right
        raise
    part.rename(folder / file)


def _bring(repo: str, commit: str, file: str, folder: Path, size: int | None) -> Path:
    """One file under a name that says it is not checked yet; what came before is gone on from."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = folder / f"{file}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    if size is not None and part.is_file() and part.stat().st_size > size:
        part.unlink()  # of another version: gone on from, it would never become right
    with _hub_errors(repo, commit), part.open("ab") as content:
        http_get(
            hf_hub_url(repo, file, revision=commit),
            content,
            resume_size=content.tell(),
            headers=build_hf_headers(library_name="xraygpt"),
            expected_size=size,
            displayed_filename=file,
        )
    return part


class _hub_errors:
    """Turns what the hub's library raises into one line with the way out."""

    def __init__(self, repo: str, revision: str | None) -> None:
        self.what = f"{repo}{f' at {revision}' if revision else ''}"

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from huggingface_hub import errors

        if error is None:
            return
        if isinstance(error, errors.GatedRepoError):
            raise InputError(
                f"{self.what} asks for an agreement: accept it on its page of the hub, then type "
                "`hf auth login` (or set HF_TOKEN) and this command again"
            ) from None
        if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
            raise InputError(
                f"the hub has no {self.what}, or it is private: check the name, or set HF_TOKEN"
            ) from None
        if isinstance(error, (OSError, RuntimeError, errors.HfHubHTTPError)) or _is_network(error):
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{self.what} could not be fetched: {why}. Type the "
                "same again: a file that was begun is continued. Behind a proxy set HTTPS_PROXY, "
                "with a mirror HF_ENDPOINT"
            ) from None


def _is_network(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore")


def _check(folder: Path, files: dict[str, Any]) -> None:
    gone = [n for n in files if not (folder / n).is_file()]
    if gone:
        raise WeightsError(
            f"{folder} lacks {len(gone)} of {len(files)} files: {', '.join(gone[:5])}; fetch it "
            "again without --offline"
        )
    for name, known in files.items():
        _check_file(folder / name, known, "the lock file")


def _check_file(path: Path, known: dict[str, Any], whose: str) -> None:
    """Refuse a file that is not what it should be.

    Raises:
        WeightsError: Its size or SHA-256 differs; names both.
    """
    size = path.stat().st_size
    if known["size"] is not None and size != known["size"]:
        raise WeightsError(
            f"{path} has {size} bytes, {known['size']} by {whose}; delete it and fetch it again"
        )
    if known["sha256"] is None:
        if known.get("git") not in (None, _git_hash(path)):
            raise WeightsError(
                f"{path} is another file than {whose} has; delete it, fetch it again"
            )
        return
    found = digest(path)
    if found != known["sha256"]:
        raise WeightsError(
            f"{path} is damaged or another file: its SHA-256 is {found}, {known['sha256']} by "
            f"{whose}; delete it and fetch it again"
        )


def _git_hash(path: Path) -> str:
    """What git calls a file: SHA-1 over ``blob <size>``, a zero byte and its bytes."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _gigabytes(files: dict[str, dict[str, Any]]) -> float:
    return sum(f["size"] or 0 for f in files.values()) / 1e9


if __name__ == "__main__":
    import os

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    from xraygpt.common.cli import guarded

    sys.exit(guarded(main))
