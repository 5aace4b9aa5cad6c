"""What the files of public collections say about a patient: ACDC's Info.cfg, the table of M&Ms."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.study import Patient, plausible_height, plausible_weight
from xraygpt.common.errors import DataError

_INFO = "info.cfg"
_CODE = "external code"
_MAX_LEVELS = 4  # folders above the patient's in which the table of M&Ms is looked for


@dataclass(frozen=True)
class PatientRecord:
    """What a collection says about a patient.

    Attributes:
        source: The file.
        convention: Of the collection's masks, a key of `segmentation.labels.CONVENTIONS`.
        patient: Sex, height and weight.
        phases: Indices of the phases ED and ES, counted from 0.
        phase_count: Number of phases; None if not said.
        warnings: What is missing or unusual, one sentence each.
    """

    source: Path
    convention: str
    patient: Patient = field(default_factory=Patient)
    phases: Mapping[str, int] = field(default_factory=dict)
    phase_count: int | None = None
    warnings: tuple[str, ...] = ()


def find_record(folder: Path, series: str) -> PatientRecord | None:
    """Return what Info.cfg or the table of M&Ms says about a patient; None without such a file.

    Args:
        folder: The patient's folder.
        series: Name of the patient's images if it is as in M&Ms, such as `A0S9V9_sa`; else empty.
    """
    info = next((f for f in sorted(folder.iterdir()) if f.name.lower() == _INFO), None)
    if info is not None:
        return _read_info(info)
    table = next(_find_tables(folder), None) if series else None
    return None if table is None else _read_row(table, series)


def check_record(record: PatientRecord, stack: Stack, is_whole: bool) -> list[str]:
    """Return sentences about what in the record does not fit the images.

    Args:
        record: What the collection says.
        stack: The images with their masks.
        is_whole: Whether they are a whole heartbeat.
    """
    name, found = record.source.name, list[str]()
    if not is_whole:
        return found
    if record.phase_count is not None and record.phase_count != stack.phases:
        found.append(f"{name} says {record.phase_count} phases, but the images have {stack.phases}")
    outside = [f"{k} = {v + 1}" for k, v in record.phases.items() if not 0 <= v < stack.phases]
    if outside:
        found.append(
            f"{name}: phase {' and '.join(outside)} is outside the images' 1 to {stack.phases}"
        )
    labelled = set(stack.labelled_phases)
    if not outside and len(record.phases) == 2 and labelled != set(record.phases.values()):
        masks = " and ".join(str(phase + 1) for phase in stack.labelled_phases)
        said = " and ".join(f"{k} = {v + 1}" for k, v in record.phases.items())
        if labelled:
            found.append(f"the masks are of phases {masks}, but {name} says {said}")
    return found


def _read_info(file: Path) -> PatientRecord:
    """Read ACDC's Info.cfg: a key and a value in each line; phases are counted from 1."""
    warnings, values = list[str](), dict[str, str]()
    for number, line in enumerate(_lines(file), start=1):
        key, colon, value = line.partition(":")
        if colon:
            values[key.strip().lower()] = value.strip()
        elif line.strip():
            warnings.append(
                f"{file.name}, line {number} has no key and value: {line.strip()[:40]!r}"
            )
    return _record(file, "acdc", values, 1, warnings)


def _read_row(table: Path, series: str) -> PatientRecord:
    """Read a patient's row in the table of M&Ms; phases are counted from 0."""
    code = series.split("_")[0]
    for row in csv.DictReader(_lines(table)):
        values = {str(k).strip().lower(): str(v or "").strip() for k, v in row.items()}
        if values.get(_CODE, "").lower() == code.lower():
            return _record(table, "mnms", values, 0, [])
    missing = f"{table.name} has no row for {code}, so height, weight and sex are unknown"
    return PatientRecord(table, "mnms", warnings=(missing,))


def _record(
    file: Path, convention: str, values: Mapping[str, str], first: int, warnings: list[str]
) -> PatientRecord:
    def number(key: str) -> float | None:
        text = values.get(key.lower(), "")
        try:
            return float(text) if text and text.lower() not in ("nan", "na", "n/a") else None
        except ValueError:
            warnings.append(f"{file.name}: {key} is {text[:20]!r}, which is not a number")
            return None

    phases = dict[str, int]()
    for key in ("ED", "ES"):
        value = number(key)
        if value is None:
            warnings.append(f"{file.name} does not say which phase is {key}")
        else:
            phases[key] = int(value) - first
    if len(phases) == 2 and phases["ED"] == phases["ES"]:
        warnings.append(f"{file.name}: ED and ES are the same phase")
        phases.clear()
    count = number("NbFrame")
    sex = {"m": "male", "f": "female"}.get(values.get("sex", "")[:1].lower(), "")
    patient = Patient(
        sex,
        plausible_height(number("Height"), file.name, warnings),
        plausible_weight(number("Weight"), file.name, warnings),
    )
    return PatientRecord(
        file, convention, patient, phases, None if count is None else int(count), tuple(warnings)
    )


def _find_tables(folder: Path) -> Iterator[Path]:
    """Yield tables of M&Ms in a folder and the folders above it."""
    for place in [folder, *folder.resolve().parents][: _MAX_LEVELS + 1]:
        for file in sorted(place.glob("*.csv")):
            with file.open(encoding="utf-8-sig", errors="replace") as stream:
                if _CODE in stream.readline().lower():
                    yield file


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: it cannot be read as text ({error}); save it as UTF-8") from None
