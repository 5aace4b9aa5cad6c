"""Corpora read from any table of studies: JSONL, a JSON array or CSV with any field names.

The project's own layout needs no mapping by `fields`: ``{id, study, split, images: [{path, view}],
turns: [{role, text}], labels?, boxes?, source?, licence?}``. Other layouts contain report sections,
human codes or a question and its answer, and `target` selects what the model has to answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from xraygpt.common.annotation_files import read_table
from xraygpt.common.checkpoint import MANIFEST
from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.errors import DataError
from xraygpt.common.registry import VOCABULARIES, registry
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Record
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.datasets.media_paths import RecordError
from xraygpt.datasets.row_reader import RowReader
from xraygpt.datasets.row_turns import TurnBuilder
from xraygpt.datasets.table_fields import FieldMap, Row, check_fields
from xraygpt.media.base import MediaRef
from xraygpt.vocabulary import questions

log = logging.getLogger(__name__)

_CODE_TARGETS = ("codes", "code_questions", "every_code_question")

NumberedRows = list[tuple[int, Row]]


@registry.register_builder("records")
class RecordsBuilder(BaseBuilder):
    """A table with one row per image or per study."""

    @dataclass(kw_only=True)
    class Config(BaseBuilder.Config):
        """Settings of a table of studies."""

        format: Literal["auto", "jsonl", "json", "csv"] = "auto"
        """Format of the file; `auto` infers it from the suffix."""
        fields: FieldMap = field(default_factory=FieldMap)
        """Names of the fields in the corpus."""
        target: Literal[
            "auto", "report", "codes", "question", "code_questions", "every_code_question", "none"
        ] = "auto"
        """What the model has to answer. `report`: the `sections`. `question`: the row's question.
        `codes`: all codes as a short list. `code_questions`: yes/no questions about coded headings,
        sampled anew each epoch. `every_code_question`: all of these, one sample each, for the task
        `yes_no`. `none`: no text, for a task with targets in `Sample.meta`. `auto`: the row's
        turns, else its question, else the report."""
        sections: list[str] = field(default_factory=lambda: ["findings", "impression"])
        """Report sections, in this order; missing ones are skipped."""
        headings: bool = False
        """Write "Findings:" and so on before each section."""
        group_by_study: bool = False
        """Make one sample from all images of a study instead of one sample from each image."""
        study_prefix: str = ""
        """Prefix of study ids, e.g. `CXR` for a table that calls study CXR1004 just 1004."""
        min_code_count: int = 25
        """`code_questions` asks only about headings that occur in this many training studies."""
        questions: int = 1
        """`code_questions`: number of questions in one sample, with one turn for each."""
        question_sides: bool = False
        """`code_questions`: answer with the side if it is coded: "yes, left.", "yes, left and
        right.". For training only: the task `vqa` treats such an answer as the answer to an open
        question."""
        ask: Literal["headings", "findings"] = "headings"
        """Subject of these questions: the headings of the codes ("Is this coded: lung?") or the
        labeller's findings, which are derived from the codes ("Is there hyperinflation?")."""
        findings_in_prompt: float | None = None
        """`report`, only in training: put the coded findings into the prompt, except in this
        fraction of the epochs, e.g. 0.3. This teaches a model to write up planned findings
        (`run.task.plan`). null never adds them."""
        locations_in_prompt: Literal["image", "question"] = "image"
        """Position of these findings: `image` puts the codes next to the image, as a plan does;
        `question` puts their findings into the question ("Write the report. Seen: edema.")."""
        codes_as_image: bool = False
        """Write each study's codes in place of its image, for `language_modeling`, which sees no
        images. This teaches the LLM to write the report from the content of that position."""
        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Vocabulary of findings, used by `ask`, `codes_from: report` and `locations_in_prompt`."""
        codes_from: Literal["coding", "report"] = "coding"
        """Source of the codes: the field `fields.codes` or, for an uncoded corpus, the findings and
        sides that the vocabulary's labeller finds in the `sections`."""
        only_images: bool = True
        """Reject records without an image; false reads them as text-only samples."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.include(super().__post_init__)
                check.fraction("findings_in_prompt")
                has_no_sides = self.question_sides and self.ask == "findings"
                message = "requires ask: headings, because findings have no sides"
                check.refuse(has_no_sides, "question_sides", message, "ask")

    config: Config

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Yield each row, or each study, with its split; see `BaseBuilder.records`."""
        path, root = self._table_paths()
        rows = list(read_table(path, self.config.format))
        check_fields(path, rows, self.config.fields, self.config.study_prefix)
        reader = RowReader(self.config, root)
        turn_builder = TurnBuilder(reader, self._find_askable_names(reader, rows), clean)
        groups, problems = self._group_rows(reader, rows, path)
        yield from ((None, f"{path.name}, {problem}") for problem in problems)
        for group in groups:
            try:
                yield from self._build_records(reader, turn_builder, group)
            except RecordError as error:
                yield None, f"{path.name}, record {group[0][0]}: {error}"

    def _table_paths(self) -> tuple[Path, Path]:
        """Return the paths of the annotation file and of the image folder."""
        storage = self.storage_folder("table of studies", "docs/data.md describes its content")
        return storage / self._annotation_file(storage), storage / (self.config.images or ".")

    def _annotation_file(self, storage: Path) -> Path:
        if self.config.annotations is not None:
            return self.config.annotations
        found = (p for e in ("jsonl", "json", "csv") for p in storage.glob(f"*.{e}"))
        paths = sorted(p for p in found if p.name != MANIFEST)
        if len(paths) == 1:
            return Path(paths[0].name)
        names = ", ".join(p.name for p in paths) or "none"
        raise DataError(
            f"{storage}: expected one annotation file, found {names}; set annotations to one of "
            "them"
        )

    def _find_askable_names(self, reader: RowReader, rows: NumberedRows) -> list[str]:
        """Find the headings or findings that at least `min_code_count` training studies have."""
        if self.config.target not in ("code_questions", "every_code_question"):
            return []
        studies: dict[str, set[str]] = {}
        for _, row in rows:
            try:
                study = reader.study_id(row)
            except RecordError:
                continue  # reported when records are built
            if reader.split_of_study(study, row) == "train":
                for name in reader.askable_names(reader.codes(row)):
                    studies.setdefault(name, set()).add(study)
        frequent = sorted(n for n, s in studies.items() if len(s) >= self.config.min_code_count)
        if len(frequent) < 2:
            log.warning(
                "%s: code_questions has %s to ask about, because no other heading occurs in "
                "%d training studies; lower min_code_count or add more studies",
                self.config.storage,
                frequent[0] if frequent else "nothing",
                self.config.min_code_count,
            )
        return frequent

    def _group_rows(
        self, reader: RowReader, rows: NumberedRows, path: Path
    ) -> tuple[list[NumberedRows], list[str]]:
        """Group rows by study if `group_by_study`, else singly; collect messages about bad rows.

        Uncoded rows are skipped if the target needs codes.
        """
        groups: dict[str | int, NumberedRows] = {}
        problems: list[str] = []
        uncoded = 0
        for number, row in rows:
            try:
                if self.config.target in _CODE_TARGETS and not questions.is_coded(
                    reader.codes(row)
                ):
                    uncoded += 1
                    continue
                key = reader.study_id(row) if self.config.group_by_study else number
                groups.setdefault(key, []).append((number, row))
            except RecordError as error:
                problems.append(f"record {number}: {error}")
        if uncoded:
            reason = "no code"
            if self.config.codes_from == "report":
                reason = "the labeller, which reads only English, found nothing about the chest"
            log.info(
                "%s: %s in %d of %d records, which are skipped", path, reason, uncoded, len(rows)
            )
        return list(groups.values()), problems

    def _build_records(
        self, reader: RowReader, turn_builder: TurnBuilder, group: NumberedRows
    ) -> Iterator[tuple[str | None, Record]]:
        """Yield the records of one group with their split, or none without one of the `views`."""
        _, row = group[0]
        self._check_group([row for _, row in group])
        media = [ref for _, r in group for ref in reader.media(r)]
        if not media and self.config.only_images:
            if self.config.views is not None:
                return
            raise RecordError("the image is missing (only_images: false accepts text-only records)")
        record = self._build_record(reader, turn_builder, row, media)
        split = reader.split_of_record(row, record)
        if self.config.target == "every_code_question":
            yield from ((split, r) for r in turn_builder.question_records(record, row))
        else:
            yield split, record

    def _build_record(
        self, reader: RowReader, turn_builder: TurnBuilder, row: Row, media: Sequence[MediaRef]
    ) -> Record:
        study_id, record_id = reader.study_id(row), reader.record_id(row, media)
        return Record(
            sample_id=study_id if self.config.group_by_study else record_id,
            study_id=study_id,
            media=tuple(media),
            meta=reader.meta(row, media),
            turns=turn_builder.build(row, len(media)),
        )

    def _check_group(self, rows: Sequence[Row]) -> None:
        """Check that rows that become one sample have the same split and no questions."""
        if len(rows) == 1:
            return
        names, split_field = self.config.fields, self.config.split.field
        if any(r.get(names.turns) or r.get(names.question) for r in rows):
            raise RecordError("group_by_study cannot merge rows with questions or turns")
        if split_field and len({str(r.get(split_field)) for r in rows}) > 1:
            raise RecordError(f"rows of one study name different splits ({split_field})")
