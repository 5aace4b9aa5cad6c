"""Lists and downloads the files of a model on the Hugging Face hub."""

from __future__ import annotations

import fnmatch
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from xraygpt.common.errors import InputError

# Not downloaded by default: copies of the weights in other formats, images and notebooks.
_SKIPPED = (
    "*.msgpack", "*.h5", "*.onnx", "*.ot", "*.tflite", "*.ipynb", "*.png", "*.svg", "*.jpg",
    "*.csv", "example_data/*", "onnx/*", "openvino/*", ".gitattributes",
)  # fmt: skip
_PICKLES = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")

FileFacts = dict[str, Any]
"""`size` in bytes, `sha256`, and for files on the hub also `git`, the git hash; all may be None."""


def list_files(
    repo: str, revision: str | None, include: list[str] | None
) -> tuple[str, dict[str, FileFacts]]:
    """List the files of a model to download.

    Args:
        repo: Owner and name of the repository, as in ``owner/name``.
        revision: Commit, tag or branch; None selects the newest commit.
        include: File name patterns; None selects all files except copies in other formats.

    Returns:
        The commit, and a dict from file name to the facts about the file.

    Raises:
        InputError: The hub cannot be reached, the model does not exist, or no file is selected.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files: dict[str, FileFacts] = {}
    for sibling in info.siblings or []:
        if not _is_selected(sibling.rfilename, include):
            continue
        require_relative(sibling.rfilename)
        sha256 = sibling.lfs.sha256 if sibling.lfs else None  # small files only have a git hash
        files[sibling.rfilename] = {"size": sibling.size, "sha256": sha256, "git": sibling.blob_id}
    if include is None:
        files = _without_duplicates(files)
    if not files:
        raise InputError(f"{repo} has no file matching {include or 'the defaults of this command'}")
    assert info.sha is not None
    return info.sha, files


def _is_selected(name: str, include: list[str] | None) -> bool:
    if include is None:
        return not matches_any(name, list(_SKIPPED))
    return matches_any(name, include)


def matches_any(name: str, patterns: list[str]) -> bool:
    """Check whether a file name matches one of the shell patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _without_duplicates(files: dict[str, FileFacts]) -> dict[str, FileFacts]:
    """Keep one copy of the weights: safetensors instead of pickles, and only the main model."""
    if not any(n.endswith(".safetensors") for n in files):
        return files
    files = {n: f for n, f in files.items() if not n.endswith(_PICKLES)}
    if "model.safetensors" in files:
        files = {n: f for n, f in files.items() if not _is_other_model(n)}
    return files


def _is_other_model(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name and name != "model.safetensors"


def require_relative(name: str) -> None:
    """Check that a file name stays inside its folder.

    Raises:
        InputError: The name points outside the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise InputError(f"the file name {name!r} points outside its folder and is not downloaded")


def download_file(repo: str, commit: str, file: str, folder: Path, size: int | None) -> Path:
    """Download one file, resuming a partial download.

    Args:
        repo: Owner and name of the repository, as in ``owner/name``.
        commit: The commit to download from.
        file: Name of the file in the repository.
        folder: The model's folder on disk.
        size: Expected size in bytes, or None if it is unknown.

    Returns:
        The path, which ends in ``.part`` because the content has not been verified yet.

    Raises:
        InputError: The file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = folder / f"{file}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    if size is not None and part.is_file() and part.stat().st_size > size:
        part.unlink()  # part of another version, so resuming cannot succeed
    with hub_errors(repo, commit), part.open("ab") as content:
        http_get(
            hf_hub_url(repo, file, revision=commit),
            content,
            resume_size=content.tell(),
            headers=build_hf_headers(library_name="xraygpt"),
            expected_size=size,
            displayed_filename=file,
        )
    return part


class hub_errors:
    """Context manager that turns errors from the hub's library into an `InputError` with a fix."""

    def __init__(self, repo: str, revision: str | None) -> None:
        self.name = f"{repo}{f' at {revision}' if revision else ''}"

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from huggingface_hub import errors

        if error is None:
            return
        if isinstance(error, errors.GatedRepoError):
            raise InputError(
                f"{self.name} requires that you accept an agreement: do so on its hub page, then "
                "run `hf auth login` (or set HF_TOKEN) and repeat this command"
            ) from None
        if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
            raise InputError(
                f"the hub has no {self.name}, or it is private: check the name or set HF_TOKEN"
            ) from None
        if isinstance(error, (OSError, RuntimeError, errors.HfHubHTTPError)) or _is_network(error):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{self.name} could not be downloaded: {reason}. Repeat the command: partial "
                "downloads are resumed. Set HTTPS_PROXY to use a proxy, HF_ENDPOINT to use a mirror"
            ) from None


def _is_network(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore")
