"""Readers for raw corpora as downloaded; each yields one `SourceReport` per study.

There are readers for OpenI as XML (a folder or the `.tgz`), OpenI as Kaggle's two CSV files, ROCO
captions, MIMIC-CXR text files, and a user's own table. Anything unreadable is yielded as a
`Problem` with its location, never dropped silently.
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
from typing import Any, Literal
from xml.etree import ElementTree

from xraygpt.common.errors import DataError

MAX_XML = 1_000_000
"""Maximum size of a report in bytes; the largest of OpenI's 3,955 reports has 13,000."""
KAGGLE_REPORTS, KAGGLE_IMAGES = "indiana_reports.csv", "indiana_projections.csv"


@dataclass(frozen=True)
class ImageName:
    """The name of an image in the corpus.

    Attributes:
        name: File name, with its extension if the corpus gives one.
        view: The view as spelled in the corpus; empty if unknown.
    """

    name: str
    view: str = ""


@dataclass(frozen=True)
class SourceReport:
    """A report as read from the corpus.

    Attributes:
        source_id: An id that is unique in the corpus.
        where: The file, and the line if the file has lines, for messages.
        sections: Lower-case heading -> text, without empty sections.
        images: The images of the study.
        patient_id: The id of the patient; empty if unknown.
        codes: Headings coded by people; empty if the corpus has none.
        automatic_codes: Headings from an automatic indexer.
    """

    source_id: str
    where: str
    sections: dict[str, str]
    images: tuple[ImageName, ...] = ()
    patient_id: str = ""
    codes: tuple[str, ...] = ()
    automatic_codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """The location of something unreadable and the reason; it never contains report text."""

    where: str
    reason: str


Rows = Iterator[SourceReport | Problem]


def read_openi_xml(path: Path) -> Rows:
    """Read the reports in `ecgen-radiology/*.xml` or their archive, in the order of their ids.

    Args:
        path: The folder, one XML file, or a `.tgz` archive.

    Raises:
        DataError: There are no reports.
    """
    files: list[tuple[str, Callable[[], bytes]]] = []
    if path.is_file() and path.suffix != ".xml":
        files = [
            (name, lambda data=data: data)  # type: ignore[misc]
            for name, data in _read_archive(path)
        ]
    else:
        paths = [path] if path.is_file() else sorted(path.rglob("*.xml"))
        root = path.parent if path.is_file() else path
        files = [(str(p.relative_to(root)), p.read_bytes) for p in paths]
    if not files:
        raise DataError(f"no OpenI reports at {path}: expected *.xml, or their .tgz archive")
    for where, read in sorted(files, key=lambda file: _numeric_order(file[0])):
        yield _parse_openi(where, read)


def _read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each XML file in an archive.

    Raises:
        DataError: The file is not an archive, or it is truncated.
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(".xml") else None
                if content is not None:
                    yield member.name, content.read(MAX_XML + 1)
    except (tarfile.TarError, EOFError, zlib.error, OSError):
        raise DataError(f"{path} is not a complete .tgz archive; download it again") from None


def _numeric_order(name: str) -> tuple[int, str]:
    stem = Path(name).stem
    return (int(stem), "") if stem.isdigit() else (0, stem)


def _parse_openi(where: str, read: Callable[[], bytes]) -> SourceReport | Problem:
    try:
        data = read()
        if len(data) > MAX_XML:
            return Problem(where, f"larger than {MAX_XML} bytes: not a report")
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        reason = str(error) if isinstance(error, ElementTree.ParseError) else type(error).__name__
        return Problem(where, f"not valid XML: {reason}")
    uid = root.find("uId")
    name = uid.get("id") if uid is not None else None
    if not name:
        return Problem(where, "no <uId id=…>: not an OpenI report")
    parts: dict[str, list[str]] = defaultdict(list)
    for node in root.iter("AbstractText"):
        parts[str(node.get("Label", "")).lower()].append(node.text or "")
    images = tuple(ImageName(i.get("id", "")) for i in root.iter("parentImage") if i.get("id"))
    codes = {
        tag: tuple(filter(None, ((node.text or "").strip() for node in root.iter(tag))))
        for tag in ("major", "automatic")
    }
    return SourceReport(
        name, where, _join_sections(parts), images, "", codes["major"], codes["automatic"]
    )


def read_openi_csv(folder: Path) -> Rows:
    """Read the reports in Kaggle's two CSV files, with their images and views.

    Args:
        folder: The folder that contains both files.

    Raises:
        DataError: A file or a column is missing.
    """
    if folder.is_file():
        raise DataError(f"{folder} is a file; name the folder that contains both tables")
    images: dict[str, list[ImageName]] = defaultdict(list)
    problems: list[Problem] = []
    for _, row in _read_table(folder / KAGGLE_IMAGES, ("uid", "filename", "projection")):
        if isinstance(row, Problem):
            problems.append(row)
        else:
            images[row["uid"]].append(ImageName(row["filename"], row["projection"]))
    yield from problems
    for where, row in _read_table(folder / KAGGLE_REPORTS, ("uid", "findings", "impression")):
        if isinstance(row, Problem):
            yield row
        elif not row["uid"].isdigit():
            yield Problem(where, "the uid is not a number")
        else:
            names = ("findings", "impression", "indication", "comparison")
            parts = {name: [row.get(name, "")] for name in names}
            uid = row["uid"]
            # "Opacity/lung/base;Cardiomegaly/mild": headings with side, place and degree.
            codes = tuple(filter(None, (c.strip() for c in row.get("MeSH", "").split(";"))))
            sections = _join_sections(parts)
            yield SourceReport(f"CXR{uid}", where, sections, tuple(images[uid]), "", codes)


def read_projections(path: Path) -> Iterator[ImageName]:
    """Yield the pictures with their views from Kaggle's table, without unreadable rows.

    Args:
        path: The table, or the folder that contains it.

    Raises:
        DataError: The file or a column is missing.
    """
    file = path / KAGGLE_IMAGES if path.is_dir() else path
    for _, row in _read_table(file, ("uid", "filename", "projection")):
        if not isinstance(row, Problem):
            yield ImageName(row["filename"], row["projection"])


def read_roco(path: Path) -> Rows:
    """Read ROCO's captions, each as the section `findings`.

    Args:
        path: `captions.txt` (id, tab, caption), its folder, or a CSV file with id, name, caption.

    Raises:
        DataError: The file or a column is missing.
    """
    file = path / "captions.txt" if path.is_dir() else path
    if file.suffix == ".csv":
        for where, row in _read_table(file, ("id", "name", "caption")):
            if isinstance(row, Problem):
                yield row
            else:
                sections = _join_sections({"findings": [row["caption"]]})
                yield SourceReport(row["id"], where, sections, (ImageName(row["name"]),))
        return
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        name, tab, caption = line.partition("\t")
        where = f"{file.name}, line {number}"
        if not line.strip():
            continue
        if not tab or not name.strip():
            yield Problem(where, "no tab between id and caption")
            continue
        name = name.strip()
        sections = _join_sections({"findings": [caption]})
        yield SourceReport(name, where, sections, (ImageName(f"{name}.jpg"),))


def read_own(path: Path) -> Rows:
    """Read a user's own table with one row per picture, as described in docs/data.md.

    Columns: `image`, `study`, `findings`, `impression`, optionally `view`, `patient`,
    `indication` and `comparison`. The texts of a study are those of its first row.

    Args:
        path: The CSV file, or the folder that contains it as `table.csv`.

    Raises:
        DataError: The file or a column is missing.
    """
    file = path / "table.csv" if path.is_dir() else path
    studies: dict[str, tuple[str, dict[str, str]]] = {}
    images: dict[str, list[ImageName]] = defaultdict(list)
    for where, row in _read_table(file, ("image", "study", "findings", "impression")):
        if isinstance(row, Problem):
            yield row
        elif not row["study"] or not row["image"]:
            yield Problem(where, "the study or the image is empty")
        else:
            studies.setdefault(row["study"], (where, row))
            images[row["study"]].append(ImageName(row["image"], row.get("view", "")))
    for study, (where, row) in studies.items():
        sections = ("findings", "impression", "indication", "comparison")
        parts = {name: [row.get(name, "")] for name in sections}
        patient = row.get("patient", "")
        yield SourceReport(study, where, _join_sections(parts), tuple(images[study]), patient)


# Headings in MIMIC-CXR -> their section, as in its official splitter (MIT-LCP, mimic-cxr,
# section_parser). All other headings are searched for the words below.
_MIMIC_HEADINGS = {
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
# Headings that name the study are followed by its findings.
_MIMIC_STUDY = re.compile(
    r"chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|"
    r"(?:frontal|pa|ap|one|lateral) view|bone window|frontal (?:semi-)?upright|ribs"
)
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]{2,60}):", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


def read_mimic(root: Path) -> Rows:
    """Read the reports of MIMIC-CXR from `files/p1x/p1xxxxxxx/sxxxxxxxx.txt`.

    The pictures of MIMIC-CXR-JPG are in folders named after the reports (`s…/`).

    Raises:
        DataError: There are no reports.
    """
    files = sorted(root.glob("files/p1?/p*/s*.txt")) or sorted(root.rglob("p*/s*.txt"))
    if not files:
        raise DataError(f"no MIMIC-CXR reports in {root}: expected files/p1x/p…/s….txt")
    for file in files:
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
    """Split a MIMIC-CXR report into sections by the headings at the start of a line.

    Of several sections with the same name, the last one with text is returned. For a report with
    neither findings nor impression, the last paragraph is returned as `last_paragraph`, as in the
    official splitter. Its table of manually set offsets for a few dozen studies is not used.
    """
    sections: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=False):
        name = _mimic_section(heading[1])
        content = " ".join(text[heading.end() : end].split())
        if name and content:
            sections[name] = content
    if not {"findings", "impression"} & set(sections):
        paragraphs = [" ".join(p.split()) for p in _PARAGRAPH.split(text)]
        last = next((p for p in reversed(paragraphs) if p and not p.endswith(":")), "")
        if last:
            sections["last_paragraph"] = _HEADING.sub("", last).strip() or last
    return sections


def _mimic_section(heading: str) -> str:
    """Return the section that a heading starts, or an empty text if it is not used."""
    heading = " ".join(heading.lower().split())
    if heading in _MIMIC_HEADINGS:
        return _MIMIC_HEADINGS[heading]
    for word, section in _MIMIC_WORDS.items():
        if word in heading:
            return section
    if _MIMIC_STUDY.search(heading):
        return "findings"
    similar = difflib.get_close_matches(heading, _MIMIC_WORDS, n=1, cutoff=0.8)  # "IMPRESSON"
    return _MIMIC_WORDS[similar[0]] if similar else ""


def _join_sections(parts: dict[str, list[str]]) -> dict[str, str]:
    """Join the parts of each section, collapse white space and drop empty sections."""
    joined = {name: " ".join(" ".join(texts).split()) for name, texts in parts.items()}
    return {name: text for name, text in joined.items() if name and text}


def _decode(data: bytes) -> str:
    """Decode each line as UTF-8, or else as Windows-1252, or else as Latin-1."""
    return "\n".join(map(_decode_line, data.removeprefix(b"\xef\xbb\xbf").split(b"\n")))


def _decode_line(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")


def _read_text(path: Path) -> str:
    try:
        return _decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _read_table(
    path: Path, required: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str] | Problem]]:
    """Yield the location and content of each row in a CSV file with a header.

    Raises:
        DataError: The file or a column is missing.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    header = _read_header(path, reader, required)
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


def _read_header(path: Path, reader: Iterator[list[str]], required: tuple[str, ...]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}: the header is not valid CSV: {error}") from None
    missing = [name for name in required if name not in header]
    if missing:
        # The message does not quote the first line: without a header it is a report.
        raise DataError(
            f"{path} lacks the column {', '.join(missing)}: its first line must name the columns"
        )
    return header


@dataclass(frozen=True)
class Corpus:
    """A raw corpus, how it is read and what its licence allows.

    Attributes:
        name: Name on the command line.
        read: A function that reads a folder or file.
        licence: The licence of the data, for manifests.
        terms: Address of its terms; empty if we know none.
        access: ``public``, or ``credentialed`` for texts that may not be sent to third parties.
        has_sections: Whether the reports have findings and impression; False for captions.
        modality: The modality of the pictures to select unless the user names one; see
            `select.MODALITIES`.
    """

    name: str
    read: Callable[[Path], Rows]
    licence: str
    terms: str = ""
    access: Literal["public", "credentialed"] = "public"
    has_sections: bool = True
    modality: str = "any"


_BY_NC_ND = ("CC BY-NC-ND 4.0", "https://creativecommons.org/licenses/by-nc-nd/4.0/")
CORPORA = {
    "openi": Corpus("openi", read_openi_xml, *_BY_NC_ND),
    "openi_kaggle": Corpus("openi_kaggle", read_openi_csv, *_BY_NC_ND),
    "roco": Corpus(
        "roco", read_roco, "of each figure; ROCO lists them in licences.txt",
        "https://www.ncbi.nlm.nih.gov/pmc/tools/openftlist/", has_sections=False, modality="xray",
    ),
    "mimic": Corpus(
        "mimic", read_mimic, "PhysioNet Credentialed Health Data License 1.5.0",
        "https://physionet.org/content/mimic-cxr/", "credentialed",
    ),
    # A user's reports, or CheXpert Plus, PadChest or VinDr-CXR in the form of such a table.
    "own": Corpus("own", read_own, "of your data", access="credentialed"),
}  # fmt: skip
