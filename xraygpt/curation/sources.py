"""The raw layouts people download -> one `SourceReport` a study, or a `Problem` with its place.

OpenI as XML (a folder or the `.tgz`), OpenI as Kaggle's CSV pair, ROCO's captions, MIMIC-CXR's text
files, and a table of one's own. Nothing here drops a report in silence: what cannot be read is a
`Problem`.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from xraygpt.common.errors import DataError

MAX_XML = 1_000_000  # bytes; the largest of the 3,955 has 13,000
KAGGLE_REPORTS, KAGGLE_IMAGES = "indiana_reports.csv", "indiana_projections.csv"


@dataclass(frozen=True)
class ImageName:
    """An image of a study, as the corpus calls it.

    Attributes:
        name: File name, with its ending if the corpus says one.
        view: As the corpus spells it; empty if it does not.
    """

    name: str
    view: str = ""


@dataclass(frozen=True)
class SourceReport:
    """One report as it was found.

    Attributes:
        source_id: Unique in the corpus.
        where: File, and row if it has one, for messages.
        sections: Lower-case heading -> text, without empty ones.
        images: Of the study.
        patient_id: If the corpus says one.
    """

    source_id: str
    where: str
    sections: dict[str, str]
    images: tuple[ImageName, ...] = ()
    patient_id: str = ""


@dataclass(frozen=True)
class Problem:
    """What could not be read: its place and why. Never holds report text."""

    where: str
    why: str


Rows = Iterator[SourceReport | Problem]


def read_openi_xml(path: Path) -> Rows:
    """Reports of `ecgen-radiology/*.xml`, or of the archive they come in, in the order of ids.

    Args:
        path: The folder, one XML file, or a `.tgz`.

    Raises:
        DataError: Neither is there.
    """
    files: list[tuple[str, Callable[[], bytes]]] = []
    if path.is_file() and path.suffix != ".xml":
        files = [(name, lambda data=data: data) for name, data in _members(path)]  # type: ignore[misc]
    else:
        found = [path] if path.is_file() else sorted(path.rglob("*.xml"))
        root = path.parent if path.is_file() else path
        files = [(str(f.relative_to(root)), f.read_bytes) for f in found]
    if not files:
        raise DataError(f"no OpenI reports at {path}: expected *.xml, or the .tgz they come in")
    for where, read in sorted(files, key=lambda f: _number(f[0])):
        yield _openi(where, read)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """XML files of an archive.

    Raises:
        DataError: It is none, or ends too early.
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(".xml") else None
                if content is not None:
                    yield member.name, content.read(MAX_XML + 1)
    except (tarfile.TarError, EOFError, zlib.error, OSError):
        raise DataError(f"{path} is no whole .tgz archive; download it again") from None


def _number(name: str) -> tuple[int, str]:
    stem = Path(name).stem
    return (int(stem), "") if stem.isdigit() else (0, stem)


def _openi(where: str, read: Callable[[], bytes]) -> SourceReport | Problem:
    try:
        data = read()
        if len(data) > MAX_XML:
            return Problem(where, f"larger than {MAX_XML} bytes: no report")
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        why = str(error) if isinstance(error, ElementTree.ParseError) else type(error).__name__
        return Problem(where, f"no XML: {why}")
    uid = root.find("uId")
    name = uid.get("id") if uid is not None else None
    if not name:
        return Problem(where, "no <uId id=…>: no report of OpenI")
    parts: dict[str, list[str]] = defaultdict(list)
    for node in root.iter("AbstractText"):
        parts[str(node.get("Label", "")).lower()].append(node.text or "")
    images = tuple(ImageName(i.get("id", "")) for i in root.iter("parentImage") if i.get("id"))
    return SourceReport(name, where, _joined(parts), images)


def read_openi_csv(folder: Path) -> Rows:
    """Reports of Kaggle's pair of CSV files, with their images and views.

    Args:
        folder: Holds both files.

    Raises:
        DataError: One is absent, or lacks a column.
    """
    if folder.is_file():
        raise DataError(f"{folder} is one file: name the folder that holds both tables")
    images: dict[str, list[ImageName]] = defaultdict(list)
    problems: list[Problem] = []
    for _, row in _table(folder / KAGGLE_IMAGES, ("uid", "filename", "projection")):
        if isinstance(row, Problem):
            problems.append(row)
        else:
            images[row["uid"]].append(ImageName(row["filename"], row["projection"]))
    yield from problems
    for where, row in _table(folder / KAGGLE_REPORTS, ("uid", "findings", "impression")):
        if isinstance(row, Problem):
            yield row
        elif not row["uid"].isdigit():
            yield Problem(where, "uid is no number")
        else:
            parts = {
                k: [v] for k, v in row.items() if k in ("findings", "impression", "indication")
            }
            parts["comparison"] = [row.get("comparison", "")]
            uid = row["uid"]
            yield SourceReport(f"CXR{uid}", where, _joined(parts), tuple(images[uid]))


def read_roco(path: Path) -> Rows:
    """Captions of ROCO: `captions.txt` (id, tab, caption), or a CSV with id, name and caption.

    The caption stands as section `findings`.

    Raises:
        DataError: The file is absent, or a column is.
    """
    file = path / "captions.txt" if path.is_dir() else path
    if file.suffix == ".csv":
        for where, row in _table(file, ("id", "name", "caption")):
            if isinstance(row, Problem):
                yield row
            else:
                sections = _joined({"findings": [row["caption"]]})
                yield SourceReport(row["id"], where, sections, (ImageName(row["name"]),))
        return
    for number, line in enumerate(_text(file).split("\n"), 1):
        name, tab, caption = line.partition("\t")
        where = f"{file.name}, line {number}"
        if not line.strip():
            continue
        if not tab or not name.strip():
            yield Problem(where, "no tab between id and caption")
            continue
        name = name.strip()
        yield SourceReport(
            name, where, _joined({"findings": [caption]}), (ImageName(f"{name}.jpg"),)
        )


def read_own(path: Path) -> Rows:
    """Reports of a table of one's own, as docs/data.md describes it: a row a picture.

    Columns `image`, `study`, `findings`, `impression`, and if there are any `view` and `patient`;
    the texts of a study are those of its first row.

    Args:
        path: The CSV, or the folder that holds it as `table.csv`.

    Raises:
        DataError: The file is absent or lacks a column.
    """
    file = path / "table.csv" if path.is_dir() else path
    studies: dict[str, tuple[str, dict[str, str]]] = {}
    images: dict[str, list[ImageName]] = defaultdict(list)
    for where, row in _table(file, ("image", "study", "findings", "impression")):
        if isinstance(row, Problem):
            yield row
        elif not row["study"] or not row["image"]:
            yield Problem(where, "no study or no image is named")
        else:
            studies.setdefault(row["study"], (where, row))
            images[row["study"]].append(ImageName(row["image"], row.get("view", "")))
    for study, (where, row) in studies.items():
        parts = {name: [row[name]] for name in ("findings", "impression")}
        patient = row.get("patient", "")
        yield SourceReport(study, where, _joined(parts), tuple(images[study]), patient)


# Headings of MIMIC-CXR -> the section they open, as its official splitter reads them (MIT-LCP,
# mimic-cxr, section_parser). A heading that is none of these is searched for the words below.
_MIMIC = {
    "indication": "indication", "reason for exam": "indication", "history": "indication",
    "reason for examination": "indication", "clinical indication": "indication",
    "clinical information": "indication", "patient history": "indication", "pfi": "indication",
    "conclusion": "impression", "conclusions": "impression", "finding": "findings",
    "findings and impression": "impression", "findings/impression": "impression",
    "findings/ impression": "impression", "reference exam": "comparison",
}  # fmt: skip
_MIMIC_WORDS = {
    "impression": "impression", "findings": "findings", "history": "indication",
    "comparison": "comparison",
}  # fmt: skip
# A heading that names the study is followed by what it shows.
_MIMIC_STUDY = re.compile(
    r"chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|"
    r"(?:frontal|pa|ap|one|lateral) view|bone window|frontal (?:semi-)?upright|ribs"
)
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]{2,60}):", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


def read_mimic(root: Path) -> Rows:
    """Reports of MIMIC-CXR: `files/p1x/p1xxxxxxx/sxxxxxxxx.txt`.

    The pictures of MIMIC-CXR-JPG lie in folders of the same names (`s…/`), wherever they are.
    Sections are found by their headings at the start of a line. A report without `FINDINGS` and
    `IMPRESSION` keeps its last paragraph as `last_paragraph`, as the corpus' own splitter does.

    Raises:
        DataError: No report is there.
    """
    found = sorted(root.glob("files/p1?/p*/s*.txt")) or sorted(root.rglob("p*/s*.txt"))
    if not found:
        raise DataError(f"no MIMIC-CXR reports in {root}: expected files/p1x/p…/s….txt")
    for file in found:
        where = str(file.relative_to(root))
        try:
            text = _decode(file.read_bytes())
        except OSError as error:
            yield Problem(where, f"cannot be read: {error.strerror}")
            continue
        sections = mimic_sections(text)
        if not sections:
            yield Problem(where, "no section and no paragraph with text")
            continue
        yield SourceReport(file.stem, where, sections, (), file.parent.name)


def mimic_sections(text: str) -> dict[str, str]:
    """Text of each section of one report; of two with one name the last that says something.

    The official splitter's table of a few dozen studies with hand-set offsets is not used.
    """
    sections: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    ends = [h.start() for h in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=False):
        name = _mimic_name(heading[1])
        content = " ".join(text[heading.end() : end].split())
        if name and content:
            sections[name] = content
    if not {"findings", "impression"} & set(sections):
        paragraphs = [" ".join(p.split()) for p in _PARAGRAPH.split(text)]
        last = next((p for p in reversed(paragraphs) if p and not p.endswith(":")), "")
        if last:
            sections["last_paragraph"] = _HEADING.sub("", last).strip() or last
    return sections


def _mimic_name(heading: str) -> str:
    """The section a heading opens; empty for one that is not read."""
    said = " ".join(heading.lower().split())
    if said in _MIMIC:
        return _MIMIC[said]
    for word, name in _MIMIC_WORDS.items():
        if word in said:
            return name
    if _MIMIC_STUDY.search(said):
        return "findings"
    near = difflib.get_close_matches(said, _MIMIC_WORDS, n=1, cutoff=0.8)  # "IMPRESSON"
    return _MIMIC_WORDS[near[0]] if near else ""


def _joined(parts: dict[str, list[str]]) -> dict[str, str]:
    """Sections with text, white space collapsed; one that stands twice is joined."""
    joined = {name: " ".join(" ".join(texts).split()) for name, texts in parts.items()}
    return {name: text for name, text in joined.items() if name and text}


def _decode(data: bytes) -> str:
    """UTF-8, line by line: a line that is none is Windows-1252, or Latin-1 as a last resort."""
    return "\n".join(map(_decode_line, data.removeprefix(b"\xef\xbb\xbf").split(b"\n")))


def _decode_line(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")


def _text(path: Path) -> str:
    try:
        return _decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _table(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str] | Problem]]:
    """Rows of a CSV with a header, each with its place.

    Raises:
        DataError: The file is absent or lacks a column.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}: the header is no CSV: {error}") from None
    missing = [name for name in needed if name not in header]
    if missing:
        # What it has is not said: without a header that is a report.
        raise DataError(
            f"{path} lacks the column {', '.join(missing)}: its first line must name the columns"
        )
    while True:
        where = f"{path.name}, line {reader.line_num + 1}"
        try:
            row: Any = next(reader, None)
        except csv.Error as error:
            yield where, Problem(where, f"broken quoting: {error}; nothing after it was read")
            return
        if row is None:
            return
        if not any(row):
            continue
        if len(row) != len(header):
            yield where, Problem(where, f"{len(row)} columns, {len(header)} in the header")
            continue
        yield where, {name: value.strip() for name, value in zip(header, row, strict=True)}


@dataclass(frozen=True)
class Corpus:
    """A raw corpus: how it is read and what its licence allows.

    Attributes:
        name: As on the command line.
        read: Folder or file -> rows.
        licence: ``open`` or ``credentialed``.
        has_sections: Whether a report has findings and impression apart; a caption has not.
        modality: Which pictures are kept unless the user says another; see `select.MODALITIES`.
    """

    name: str
    read: Callable[[Path], Rows]
    licence: str
    has_sections: bool = True
    modality: str = "any"


CORPORA = {
    "openi": Corpus("openi", read_openi_xml, "open"),
    "openi_kaggle": Corpus("openi_kaggle", read_openi_csv, "open"),
    "roco": Corpus("roco", read_roco, "open", has_sections=False, modality="xray"),
    "mimic": Corpus("mimic", read_mimic, "credentialed"),
    # Patients' reports, or CheXpert Plus, PadChest, VinDr-CXR brought into this shape.
    "own": Corpus("own", read_own, "credentialed"),
}
