"""The work behind `python -m xraygpt.prepare_images`."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xraygpt.common.checkpoint import write_bytes_atomic, write_text_atomic
from xraygpt.common.errors import DataError, XrayGPTError
from xraygpt.common.logging import progress

log = logging.getLogger(__name__)

SIZES, FAILED, JOURNAL = "sizes.csv", "failed.csv", ".sizes.jsonl"
_SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", "")  # "": DICOM files without a suffix


class SomeImagesFailed(XrayGPTError):
    """The images are converted, but some files could not be read."""

    exit_code = 3


@dataclass(frozen=True)
class Conversion:
    """How images are converted.

    Attributes:
        suffix: ``.jpg`` or ``.png``.
        side: Longer side in pixels; None keeps the size.
        quality: Quality of JPEG.
    """

    suffix: str = ".jpg"
    side: int | None = None
    quality: int = 95


class Entry(NamedTuple):
    """An image in the journal.

    Attributes:
        path: Its converted file, relative to the output.
        width: Width of the original in pixels; 0 if it could not be read.
        height: Its height.
        source: The original, relative to the input, with its size in bytes and time of change.
        settings: The settings of the conversion.
        error: Why it could not be read; "" if it could.
    """

    path: str
    width: int
    height: int
    source: tuple[str, int, int]
    settings: str
    error: str = ""


class Summary(NamedTuple):
    """The result of a run.

    Attributes:
        images: Number of converted images.
        converted: Number that this run converted.
        failed: Number of files that could not be read.
    """

    images: int
    converted: int
    failed: int


def convert_images(
    source: Path, out: Path, settings: Conversion, workers: int, resolutions: Path | None = None
) -> Summary:
    """Convert all images below a folder.

    The size of each image is appended to a journal as soon as it is converted, so that an
    interruption loses nothing, and a later run does not measure again.

    Args:
        source: Folder with images.
        out: Folder for the converted images.
        settings: How they are converted.
        workers: Number of processes.
        resolutions: File for RadVLM's table of sizes.

    Raises:
        DataError: Two images would get the same name.
    """
    out.mkdir(parents=True, exist_ok=True)
    journal = out / JOURNAL
    known = _read_journal(journal)
    todo, entries = _plan(source, out, settings, known)
    with journal.open("a", encoding="utf-8") as file:
        for entry in progress(
            _convert_all(source, out, settings, todo, workers), "converting", len(todo),
            unit="image",
        ):  # fmt: skip
            file.write(json.dumps(entry) + "\n")
            file.flush()
            entries[entry.source[0]] = entry
    done = [entry for _, entry in sorted(entries.items()) if not entry.error]
    failed = [entry for _, entry in sorted(entries.items()) if entry.error]
    _write_tables(out, done, failed)
    if resolutions is not None:
        sizes = {Path(e.path).stem: [e.height, e.width] for e in done}
        write_text_atomic(resolutions, json.dumps(sizes) + "\n")
    return Summary(len(done), sum(e.source[0] in todo for e in done), len(failed))


def _plan(
    source: Path, out: Path, settings: Conversion, known: dict[str, Entry]
) -> tuple[list[str], dict[str, Entry]]:
    """Return the files to convert, and the entries of those that are up to date."""
    stamp = json.dumps(asdict(settings))
    todo: list[str] = []
    entries: dict[str, Entry] = {}
    names: dict[str, str] = {}
    for name, size, changed in _find(source, out):
        target = str(Path(name).with_suffix(settings.suffix))
        if target in names:
            raise DataError(f"{names[target]} and {name} would both become {target}")
        names[target] = name
        entry = known.get(name)
        current = entry is not None and entry.source == (name, size, changed)
        if (
            entry
            and current
            and entry.settings == stamp
            and (entry.error or (out / target).is_file())
        ):
            entries[name] = entry
        else:
            todo.append(name)
    return todo, entries


def _find(source: Path, out: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of change of the images, in order."""
    skipped = out.resolve()
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(f for f in folders if (Path(folder) / f).resolve() != skipped)
        for file in sorted(files):
            path = Path(folder) / file
            if path.suffix.lower() in _SUFFIXES and not file.startswith("."):
                status = path.stat()
                yield str(path.relative_to(source)), status.st_size, status.st_mtime_ns


def _convert_all(
    source: Path, out: Path, settings: Conversion, todo: Sequence[str], workers: int
) -> Iterator[Entry]:
    convert = partial(_convert, source, out, settings)
    workers = min(workers, len(todo))
    if workers <= 1:
        yield from map(convert, todo)
        return
    pool = ProcessPoolExecutor(workers, initializer=_ignore_interrupt)
    try:
        yield from pool.map(convert, todo, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the others


def _convert(source: Path, out: Path, settings: Conversion, name: str) -> Entry:
    """Convert one image; a file that cannot be read becomes an entry with the reason."""
    from xraygpt.media.pixels import read_image

    path, target = source / name, Path(name).with_suffix(settings.suffix)
    status = path.stat()
    facts = ((name, status.st_size, status.st_mtime_ns), json.dumps(asdict(settings)))
    try:
        pixels = read_image(path).pixels
    except DataError as error:
        return Entry(str(target), 0, 0, *facts, str(error))
    (out / target).parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(out / target, encode(pixels, settings))
    return Entry(str(target), pixels.shape[1], pixels.shape[0], *facts)


def encode(pixels: np.ndarray, settings: Conversion) -> bytes:
    """Return an image file.

    Args:
        pixels: float32 in [0, 1], (H, W) or (H, W, 3).
        settings: Format, size and quality.
    """
    from PIL import Image

    image = Image.fromarray(np.clip(pixels * 255 + 0.5, 0, 255).astype(np.uint8))
    longest = max(image.size)
    if settings.side is not None and longest > settings.side:
        width, height = (max(1, round(s * settings.side / longest)) for s in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    if settings.suffix == ".jpg":
        image.save(buffer, format="JPEG", quality=settings.quality)
    else:
        image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _read_journal(path: Path) -> dict[str, Entry]:
    """Return the last entry of each original; an incomplete last line is left out."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    entries = {}
    for line in text.splitlines():
        target, width, height, source, settings, error = json.loads(line)
        entries[source[0]] = Entry(target, width, height, tuple(source), settings, error)
    return entries


def _write_tables(out: Path, done: Sequence[Entry], failed: Sequence[Entry]) -> None:
    sizes = [(Path(e.path).stem, e.path, e.width, e.height) for e in done]
    _write_csv(out / SIZES, ("image_id", "path", "width", "height"), sizes)
    if failed:
        _write_csv(out / FAILED, ("file", "reason"), [(e.source[0], e.error) for e in failed])
    else:
        (out / FAILED).unlink(missing_ok=True)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text_atomic(path, buffer.getvalue())
