"""De-identifies the ultrasound clips of a folder: the work behind `prepare_ultrasound`."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.errors import DataError, InputError, XrayGPTError
from xraygpt.common.logging import progress
from xraygpt.ultrasound.clip import NotUltrasound
from xraygpt.ultrasound.intake import Settings, deidentify, describe
from xraygpt.ultrasound.names import Names, load_key
from xraygpt.ultrasound.page import Skipped, details, write_montage, write_pages
from xraygpt.ultrasound.source import find_files, read_clip, read_identity_of
from xraygpt.ultrasound.store import KEY_FILE, State, write_pixels
from xraygpt.ultrasound.text import NOT_SEARCHED, TextFinder

log = logging.getLogger(__name__)


class SomeFilesFailed(XrayGPTError):
    """Some files are damaged; all others are in the output."""


@dataclass(frozen=True)
class Summary:
    """What an intake did.

    Attributes:
        clips: Number of clips and still images in the output.
        new: How many of them this run made.
        skipped: Files without a clip.
    """

    clips: int
    new: int
    skipped: tuple[Skipped, ...]

    @property
    def damaged(self) -> tuple[Skipped, ...]:
        """Files that should have been read."""
        return tuple(file for file in self.skipped if file.is_damaged)


class Intake:
    """Reads files, and writes de-identified clips and pages about them.

    Args:
        source: A file, or a folder with files at any depth.
        out: The output folder; a run that was stopped continues there.
        settings: How clips are de-identified.
        find: Finds text in a picture; None does not look for text.
        key: File with the key of the pseudonyms; None keeps it in the output folder.

    Raises:
        InputError: The output folder has other files or results of other settings, or is inside
            the source.
    """

    def __init__(
        self,
        source: Path,
        out: Path,
        settings: Settings,
        find: TextFinder | None = None,
        key: Path | None = None,
    ) -> None:
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{out} is inside {source}; choose a folder outside it")
        self.source, self.out, self.settings, self.find = source, out, settings, find
        searched = "not looked for" if find is None else "looked for"
        self.facts = {**asdict(settings), "text_search": searched}
        self.files = find_files(source)
        self.state = State(out, self.facts)
        secret = load_key(key or out / KEY_FILE)
        identities = {file: read_identity_of(file) for file in self.files}
        self.names = Names(source, identities, secret)

    def run(self) -> Summary:
        """De-identify all files that are not done yet, and write the pages.

        Raises:
            InputError: No file could be read.
        """
        if self.find is None:
            log.warning("%s", NOT_SEARCHED)
        clips, skipped, new = list[dict[str, Any]](), list[Skipped](), 0
        for file in progress(self.files, desc="ultrasound", unit="file"):
            name = self.names.clip(file)
            status = file.stat()
            stamp = [status.st_size, status.st_mtime_ns]
            stored = self.state.find(name, stamp)
            if stored is not None and (self.out / stored["row"]["image"]).is_file():
                clips.append(stored)
                continue
            try:
                result = self._prepare(file, name)
            except DataError as error:
                is_damaged = not isinstance(error, NotUltrasound)
                skipped.append(Skipped(self.names.source(file), str(error), is_damaged))
                continue
            self.state.add(name, stamp, result)
            clips.append(result)
            new += 1
        if not clips:
            reasons = "\n".join(f"  {file.source}: {file.reason}" for file in skipped)
            raise InputError(f"{self.source}: no file could be read\n{reasons}")
        write_pages(self.out, clips, skipped, self.facts)
        return Summary(len(clips), new, tuple(skipped))

    def _prepare(self, file: Path, name: str) -> dict[str, Any]:
        """De-identify one file and write its clip and its montage.

        Raises:
            DataError: It cannot be read.
        """
        clip = read_clip(file)
        result = deidentify(clip, self.settings, self.find)
        image = write_pixels(self.out, name, result.pixels, clip.times)
        row = {
            "id": name,
            "study": self.names.study(file, self.settings.study_from),
            "patient": self.names.patient(file),
            "image": image.as_posix(),
            "source": self.names.source(file),
            **describe(result),
        }
        figure = write_montage(self.out, name, result)
        return {"row": row, "details": details(result), "figure": figure.as_posix()}
