"""Readers for the files of an echovlm run and for a user's own assets of EchoPrime."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xraygpt.common.annotation_files import read_table
from xraygpt.common.errors import DataError
from xraygpt.common.restricted_pickle import ENCODINGS, NUMBERS, EncodingData, load_pickle
from xraygpt.datasets.echo_phrases import PhraseBank, Slots
from xraygpt.prompting.tiktoken_bpe import TiktokenData

log = logging.getLogger(__name__)

MANIFEST, REPORTS, EMBEDDINGS = "manifest.csv", "reports.pkl", "embeddings.pt"
TOKEN_BYTES = "token_bytes.pt"
CANDIDATES, CANDIDATE_REPORTS = "candidate_studies.csv", "candidate_reports.pkl"
PHRASES, VIEW_WEIGHTS = "all_phr.json", "MIL_weights.csv"
CANDIDATE_EMBEDDINGS = "candidate_embeddings_p*.pt"
_LABELS = {"view": "view", "views": "view", "type": "type", "types": "type"}


class Study(NamedTuple):
    """One study of a source: its row in the table that is written, and a fault if it has one."""

    row: dict[str, Any]
    fault: str = ""


@dataclass
class EchoSource:
    """The studies of a source.

    Attributes:
        name: Name of the source.
        files: The files that were read.
        embeddings: Tensors that follow each other, (n, D) each; not loaded if possible.
        studies: Yields the studies once, freeing their memory; `row` is their embedding. Reports
            are loaded when the first one is requested.
        has_splits: Whether each study has a split.
        counts: Counts for the user, complete when `studies` is exhausted.
        tokenizer: The tokenizer, if there is one.
        token_bytes: Bytes of each token as the source counted them, (vocabulary,), or None.
        view_weights: File with weights of views, which is copied; None if there is none.
    """

    name: str
    files: list[Path]
    embeddings: list[Tensor]
    studies: Iterator[Study]
    has_splits: bool
    counts: Counter[str] = field(default_factory=Counter)
    tokenizer: TiktokenData | None = None
    token_bytes: Tensor | None = None
    view_weights: Path | None = None


@dataclass(frozen=True)
class EchoPaths:
    """Where the files of a source are; None means that they are looked for in the folder."""

    folder: Path
    phrases: Path | None = None
    embeddings: tuple[Path, ...] = ()


def detect_source(folder: Path) -> str:
    """Return ``echovlm`` or ``echoprime``, depending on the files in a folder.

    Raises:
        DataError: It contains neither.
    """
    if (folder / MANIFEST).is_file() or _find(folder, MANIFEST):
        return "echovlm"
    if _find(folder, CANDIDATES):
        return "echoprime"
    raise DataError(
        f"{folder} contains neither {MANIFEST} (an echovlm run) nor {CANDIDATES} (EchoPrime)"
    )


# ---- echovlm -------------------------------------------------------------------------------------


def read_echovlm(paths: EchoPaths) -> EchoSource:
    """Read the assets of an echovlm run.

    Raises:
        DataError: A file is missing or damaged, or contains anything but plain data.
    """
    manifest = _require(paths.folder, MANIFEST)
    folder = manifest.parent
    files = [manifest, _require(folder, REPORTS), _require(folder, EMBEDDINGS)]
    parts = [load_embeddings(files[2])]
    counts: Counter[str] = Counter()
    studies = _listed(manifest, files[1], len(parts[0]), counts)
    source = EchoSource("echovlm", files, parts, studies, True, counts)
    pickled = folder / "tokenizer" / "tokenizer.pkl"
    if pickled.is_file():
        source.tokenizer = load_tokenizer(pickled)
        files.append(pickled)
    for path in (folder / TOKEN_BYTES, folder / "tokenizer" / TOKEN_BYTES):
        if path.is_file():
            source.token_bytes = load_tensor(path)
            files.append(path)
            break
    return source


def _listed(manifest: Path, pickled: Path, rows: int, counts: Counter[str]) -> Iterator[Study]:
    """Yield the studies in the manifest, whose ids are row numbers; see `EchoSource.studies`."""
    reports = _load_reports(pickled, rows)
    seen = bytearray(len(reports))
    for line, cells in read_table(manifest, "csv"):
        study, split = cells.get("study"), cells.get("split")
        if study is None or split is None:
            raise DataError(f"{manifest} must have the columns study and split")
        row: dict[str, Any] = {"study": study, "split": split}
        try:
            index = int(study)
        except ValueError:
            index = -1
        if not 0 <= index < len(reports):
            yield Study(
                row, f"line {line}: study {study!r} is no row of the {len(reports)} reports"
            )
        elif seen[index]:
            yield Study(row, f"line {line}: study {study} is listed twice")
        else:
            seen[index] = True
            report, reports[index] = reports[index], None
            yield _study({**row, "row": index}, report)
    counts["reports that the manifest does not list"] = len(reports) - sum(seen)


def _study(row: dict[str, Any], report: Any) -> Study:
    where = f"study {row['study']}"
    if not isinstance(report, str):
        return Study(row, f"{where}: the report must be text, got {type(report).__name__}")
    fault = "" if report.strip() else f"{where}: the report is empty"
    return Study({**row, "report": report.strip()}, fault)


def load_tokenizer(path: Path) -> TiktokenData:
    """Read a pickled `tiktoken.Encoding` without importing tiktoken.

    Raises:
        DataError: The file contains anything else.
    """
    encoding = load_pickle(path, ENCODINGS)
    if not isinstance(encoding, EncodingData):
        raise DataError(f"{path}: expected a tiktoken.Encoding, got {type(encoding).__name__}")
    return TiktokenData.from_state(encoding.state, str(path))


# ---- EchoPrime -----------------------------------------------------------------------------------


def read_echoprime(paths: EchoPaths, slots: Slots) -> EchoSource:
    """Read a user's own assets of EchoPrime.

    Raises:
        DataError: A file is missing or damaged, or contains anything but plain data.
    """
    folder = paths.folder
    table, pickled = _require(folder, CANDIDATES), _require(folder, CANDIDATE_REPORTS)
    phrases = paths.phrases or _require(folder, PHRASES, "--phrases")
    tensors = list(paths.embeddings) or sorted(folder.rglob(CANDIDATE_EMBEDDINGS))
    if not tensors:
        raise DataError(f"{folder} has no {CANDIDATE_EMBEDDINGS}; name the files with --embeddings")
    bank = PhraseBank(phrases, slots)
    parts = [load_embeddings(path) for path in tensors]
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise DataError(f"the embeddings have different widths: {sorted(widths)}")
    counts: Counter[str] = Counter()
    files = [table, pickled, phrases, *tensors]
    studies = _decoded(table, (pickled, sum(map(len, parts))), bank, counts)
    source = EchoSource("EchoPrime", files, parts, studies, False, counts)
    source.view_weights = _find(folder, VIEW_WEIGHTS)
    return source


def _decoded(
    table: Path, pickled: tuple[Path, int], bank: PhraseBank, counts: Counter[str]
) -> Iterator[Study]:
    """Yield the studies of the table, whose line k belongs to report k and embedding k.

    Args:
        table: The table of studies.
        pickled: The file of reports, and their expected number.
        bank: The phrases.
        counts: Counter of what the user should know.
    """
    reports = _load_reports(*pickled)
    index = -1
    for index, (_, cells) in enumerate(read_table(table, "csv")):
        study = cells.get("Study") or cells.get("study")
        if not study:
            raise DataError(f"{table}, line {index + 2}: the study is missing (column Study)")
        if index >= len(reports):
            break
        counts["studies whose id is not their position"] += study != str(index)
        row: dict[str, Any] = {"study": study, "row": index}
        for name, cell in cells.items():
            if (label := _LABELS.get(name.lower())) and cell:
                row[label] = cell
        try:
            text = bank.decode(reports[index], counts)
        except DataError as error:
            yield Study(row, f"study {study} (report {index}): {error}")
            continue
        finally:
            reports[index] = None
        yield _study(row, text)
    if index + 1 != len(reports):
        raise DataError(f"{table} has not as many studies as there are reports ({len(reports)})")


# ---- files ---------------------------------------------------------------------------------------


def load_embeddings(path: Path) -> Tensor:
    """Load a tensor of embeddings as (n, D); it stays on disk if its format allows that.

    Raises:
        DataError: The file contains anything else.
    """
    tensor = load_tensor(path)
    if tensor.dim() == 3 and tensor.shape[1] == 1:
        tensor = tensor.squeeze(1)
    if tensor.dim() != 2 or not tensor.numel() or not tensor.is_floating_point():
        raise DataError(
            f"{path}: embeddings must be floating-point numbers of shape (n, D), got "
            f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor


def load_tensor(path: Path) -> Tensor:
    """Load one tensor with torch's restricted reader.

    Raises:
        DataError: The file is missing or damaged, or contains anything but one tensor.
    """
    settings: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            content = torch.load(path, mmap=True, **settings)
        except RuntimeError:  # torch's format before version 1.6 cannot be mapped
            content = torch.load(path, **settings)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # torch raises errors of many kinds
        reason = next((s for s in str(error).splitlines() if "Unsupported" in s), str(error))
        raise DataError(f"{path}: refused or damaged: {reason.strip()[:300]}") from None
    if not isinstance(content, Tensor):
        raise DataError(f"{path}: expected one tensor, got {type(content).__name__}")
    return content


def _load_reports(path: Path, rows: int) -> list[Any]:
    """Load a list of as many reports as there are rows of embeddings."""
    content = load_pickle(path, NUMBERS)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of reports, got {type(content).__name__}")
    if len(content) != rows:
        raise DataError(f"{path} has {len(content)} reports, but there are {rows} embeddings")
    return content


def _find(folder: Path, name: str) -> Path | None:
    """Return the only file with this name below a folder, the one directly in it first.

    Raises:
        DataError: There are several.
    """
    if (folder / name).is_file():
        return folder / name
    found = sorted(folder.rglob(name))
    if len(found) > 1:
        raise DataError(f"{folder} contains {name} {len(found)} times: name the folder of one")
    return found[0] if found else None


def _require(folder: Path, name: str, option: str = "") -> Path:
    path = _find(folder, name)
    if path is None:
        hint = f"; name it with {option}" if option else ""
        raise DataError(f"{folder} has no {name}{hint}")
    return path


def rows_of(parts: Sequence[Tensor], chunk: int) -> Iterator[Tensor]:
    """Yield the rows of tensors that follow each other in chunks of contiguous memory."""
    for part in parts:
        for start in range(0, len(part), chunk):
            yield part[start : start + chunk].contiguous()
