"""Any table of studies: JSONL, a JSON array or CSV, with `fields` that say what is called how.

The project's own layout needs no mapping: ``{id, study, split, images: [{path, view}], turns:
[{role, text}], labels?, boxes?, source?, licence?}``. Other layouts give report sections, human
codes or a question and its answer, and `target` says which of them the model is to answer.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.errors import DataError
from xraygpt.common.registry import VOCABULARIES, did_you_mean, registry
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Record
from xraygpt.datasets.builder import BaseBuilder, RecordError, image_in, media_of
from xraygpt.datasets.caption_folder import load_json
from xraygpt.media.base import MediaRef
from xraygpt.prompting.content import IMAGE, VIDEO, Turn
from xraygpt.vocabulary import Vocabulary, questions, vocabulary_of
from xraygpt.vocabulary.openi import is_published_test

log = logging.getLogger(__name__)

_CODED = ("codes", "code_questions", "every_code_question")  # targets that need codes


@dataclass(kw_only=True)
class FieldMap:
    """What the corpus calls each thing; a field that does not exist in it is simply absent."""

    id: str = "id"
    """Names the record; if absent, the image's name is taken."""
    study: str = "study"
    """Names the study; studies, not images, are split."""
    patient: str = "patient"
    """Names the patient; where it is given, patients are split and not studies."""
    image: str = "image"
    """Path of the image, or a list of paths."""
    images: str = "images"
    """A list of `{path, view}`; docs/data.md has the other keys, for clips, volumes, rows of
    embeddings."""
    view: str = "view"
    """View of the single image."""
    codes: str = "codes"
    """Human coding, a list of `heading/place/side/degree`."""
    question: str = "question"
    """The question of a question–answer pair."""
    answer: str = "answer"
    """Its answer."""
    turns: str = "turns"
    """A list of `{role, text}`."""
    keep: list[str] = field(default_factory=lambda: ["labels", "boxes", "source", "licence"])
    """Fields carried along in `Sample.meta`."""
    files: list[str] = field(default_factory=list)
    """Fields that name a file under `storage`, such as a mask; carried along as its path."""


@registry.register_builder("records")
class RecordsBuilder(BaseBuilder):
    """One row per image or per study."""

    @dataclass(kw_only=True)
    class Config(BaseBuilder.Config):
        """Settings of a table of studies."""

        format: Literal["auto", "jsonl", "json", "csv"] = "auto"
        """Layout of the file; `auto` goes by its ending."""
        fields: FieldMap = field(default_factory=FieldMap)
        """What the corpus calls each thing."""
        target: Literal[
            "auto", "report", "codes", "question", "code_questions", "every_code_question", "none"
        ] = "auto"
        """What the model is to answer. `report`: the `sections`. `question`: the row's own
        question. `codes`: what is coded as a short list. `code_questions`: yes/no questions
        about coded headings, drawn anew each epoch. `every_code_question`: all of these, each a
        sample of its own, for the task `yes_no`. `none`: nothing in words, for a task with targets
        of its own in `Sample.meta`. `auto`: the row's turns, else its question, else
        the report."""
        sections: list[str] = field(default_factory=lambda: ["findings", "impression"])
        """Report sections, in this order; those a study lacks are left out."""
        headings: bool = False
        """Write "Findings:" and so on before each section."""
        group_by_study: bool = False
        """Make one sample of all images of a study, instead of one of each."""
        study_prefix: str = ""
        """Put before study ids, e.g. `CXR` for a table that calls study CXR1004 just 1004."""
        min_code_count: int = 25
        """`code_questions` asks about headings that at least so many studies have."""
        questions: int = 1
        """`code_questions`: how many of them one sample holds, each a turn of its own."""
        question_sides: bool = False
        """`code_questions`: answer with the side where one is coded: "yes, left.", "yes, left and
        right.". For training: the task `vqa` takes such an answer for that of an open question."""
        ask: Literal["headings", "findings"] = "headings"
        """What those questions are about: headings of the codes ("Is this coded: lung?") or the
        labeller's findings, as the codes say them ("Is there hyperinflation?")."""
        findings_in_prompt: float | None = None
        """`report`, in training alone: tell what is coded, but for this share of the draws, e.g.
        0.3; for a model that is to write up what was found before (`run.task.plan`). null never
        does."""
        locations_in_prompt: Literal["image", "question"] = "image"
        """Where: the codes beside the image, as a plan tells them, or their findings in a question
        of its own ("Write the report. Seen: edema.")."""
        codes_as_image: bool = False
        """Write each study's codes where its image would be: for `language_modeling`, which sees
        none. The LLM so learns to write what stands at that place."""
        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Names of findings; used by `ask`, `codes_from: report` and `locations_in_prompt`."""
        codes_from: Literal["coding", "report"] = "coding"
        """Where codes come from: the field `fields.codes`, or, for a corpus nobody coded, the
        findings that the vocabulary's labeller reads in the `sections`, with their side."""
        only_images: bool = True
        """Refuse records without an image; false takes them as text-only samples."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.also(super().__post_init__)
                check.share("findings_in_prompt")
                sideless = self.question_sides and self.ask == "findings"
                why = "goes with ask: headings, whose codes have sides"
                check.refuse(sideless, "question_sides", why, "ask")

    config: Config

    @property
    def vocabulary(self) -> Vocabulary:
        """What the corpus's findings are called."""
        return vocabulary_of(self.config.vocabulary)

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Each row, or each study, with its split."""
        storage = self.folder("table of studies", "docs/data.md says what it should hold")
        path = storage / self._annotations(storage)
        root = storage / (self.config.images or ".")
        rows = list(read_table(path, self.config.format))
        self._check_fields(path, rows)
        asked = self._vocabulary(row for _, row in rows)
        merged: dict[str | int, list[tuple[int, dict]]] = {}
        uncoded = 0
        for number, row in rows:
            try:
                if self.config.target in _CODED and not questions.is_coded(self._codes(row)):
                    uncoded += 1
                    continue  # nobody said whether it is normal: nothing to ask
                key = self._study(row) if self.config.group_by_study else number
                merged.setdefault(key, []).append((number, row))
            except RecordError as error:
                yield None, f"{path.name}, record {number}: {error}"
        if uncoded:
            how = "the labeller, which reads English, finds nothing to say of the chest in"
            how = how if self.config.codes_from == "report" else "no code in"
            log.info("%s: %s %d of %d records; not asked about", path, how, uncoded, len(rows))
        for group in merged.values():
            number, row = group[0]
            try:
                self._check_group(group)
                images = [ref for _, r in group for ref in self._images(r, root)]
                if not images and self.config.only_images:
                    if self.config.views is not None:
                        continue  # none of this study's views was asked for
                    raise RecordError("no image (only_images: false takes text-only records)")
                record = self._record(row, images, root, clean, asked)
                split = self._split(row, record)
                if self.config.target == "every_code_question":
                    yield from ((split, one) for one in self._asked_apart(record, row, asked))
                else:
                    yield split, record
            except RecordError as error:
                yield None, f"{path.name}, record {number}: {error}"

    def _vocabulary(self, rows: Iterable[dict]) -> list[str]:
        """Headings that enough training studies have; val and test have no say."""
        if self.config.target not in ("code_questions", "every_code_question"):
            return []
        studies: dict[str, set[str]] = {}
        for row in rows:
            try:
                study = self._study(row)
            except RecordError:
                continue  # it is named where records are made
            if self._split_of(study, row) == "train":
                for heading in self._named(self._codes(row)):
                    studies.setdefault(heading, set()).add(study)
        often = sorted(h for h, s in studies.items() if len(s) >= self.config.min_code_count)
        if len(often) < 2:
            log.warning(
                "%s: code_questions has %s to ask about, for no other heading has %d training "
                "studies; lower min_code_count or bring more studies",
                self.config.storage,
                often[0] if often else "nothing",
                self.config.min_code_count,
            )
        return often

    def _check_group(self, group: list[tuple[int, dict]]) -> None:
        """Rows that become one sample must agree on the split and hold no questions."""
        if len(group) == 1:
            return
        rows = [row for _, row in group]
        names, field_ = self.config.fields, self.config.split.field
        if any(r.get(names.turns) or r.get(names.question) for r in rows):
            raise RecordError("group_by_study cannot merge rows with questions or turns")
        if field_ and len({str(r.get(field_)) for r in rows}) > 1:
            raise RecordError(f"rows of one study name different splits ({field_})")

    def _annotations(self, storage: Path) -> Path:
        if self.config.annotations is not None:
            return self.config.annotations
        found = sorted(p for e in ("jsonl", "json", "csv") for p in storage.glob(f"*.{e}"))
        if len(found) == 1:
            return Path(found[0].name)
        names = ", ".join(p.name for p in found) or "none"
        raise DataError(f"{storage}: set annotations to one file (found: {names})")

    def _check_fields(self, path: Path, rows: list[tuple[int, dict]]) -> None:
        """A mapping the user gave must be found in some row; else it is a misspelling."""
        have = sorted({key for _, row in rows for key in row})
        if {"uid", "MeSH", "Problems"} <= set(have) and not self.config.study_prefix:
            raise DataError(
                f"{path} is OpenI's table with bare study numbers: set study_prefix: CXR, so "
                "that the studies of the published test split are known as such"
            )
        default, given = FieldMap(), self.config.fields
        if rows and given.study not in have:
            log.warning(
                "%s: no record has the field '%s', so each image counts as a study of its own; two "
                "of one patient may come into different splits (fields.study names the field)",
                path,
                given.study,
            )
        for name in given.files:
            if rows and name not in have:
                hint = did_you_mean(name, have)
                raise DataError(f"{path}: no record has the field '{name}' (fields.files){hint}")
        for f in fields(FieldMap):
            name = getattr(given, f.name)
            if isinstance(name, str) and name != getattr(default, f.name) and name not in have:
                hint = did_you_mean(name, have)
                raise DataError(f"{path}: no record has the field '{name}' (fields.{f.name}){hint}")

    def _split(self, row: dict, record: Record) -> str | None:
        if any(is_published_test(image.name) for image in record.media):
            return "test"
        return self._split_of(record.study_id, row)

    def _split_of(self, study: str, row: dict) -> str | None:
        rule = self.config.split
        said = row.get(rule.field) if rule.field else None
        patient = row.get(self.config.fields.patient)
        unit = study if patient in (None, "") or is_published_test(study) else f"patient {patient}"
        return rule.of(unit, str(said) if said else None)

    def _study(self, row: dict) -> str:
        names = self.config.fields
        study = row.get(names.study)
        if study in (None, ""):
            study = row.get(names.image) or row.get(names.id)
        if not isinstance(study, (str, int)):
            raise RecordError(f"no study id (fields.study: {names.study})")
        return f"{self.config.study_prefix}{study}"

    def _images(self, row: dict, root: Path) -> Iterator[MediaRef]:
        names = self.config.fields
        listed, shared = row.get(names.images), ""
        if not isinstance(listed, list):
            one = row.get(names.image)
            listed = one if isinstance(one, list) else [one] if one not in (None, "") else []
            shared = str(row.get(names.view) or "")
        for item in listed:
            item = {"path": item} if isinstance(item, str) else item
            ref = media_of(item, partial(image_in, root), shared)
            if self.config.views is None or ref.view in self.config.views:
                yield ref

    def _record(
        self,
        row: dict,
        images: list[MediaRef],
        root: Path,
        clean: Callable[[str], str],
        asked: list[str],
    ) -> Record:
        names = self.config.fields
        study = self._study(row)
        name = row.get(names.id)
        if name in (None, ""):
            name = study
            if images:  # patients' folders often hold files of the same names
                path = images[0].path
                name = str(path.relative_to(root)).removesuffix(path.suffix)
        meta = {key: row[key] for key in names.keep if key in row}
        meta |= {key: self._file(key, row[key]) for key in names.files if row.get(key)}
        meta |= {"codes": self._coding(row), "views": [i.view for i in images]}
        meta["sections"] = {s: row[s] for s in self.config.sections if row.get(s)}
        turns = self._turns(row, len(images), clean, asked)
        told = self.config.findings_in_prompt
        if told is not None and self.config.target in ("auto", "report") and not callable(turns):
            codes = self._codes(row)
            if questions.is_coded(codes) and self._split_of(study, row) == "train":
                turns = questions.PromptFindings(
                    turns, codes, told, self.config.locations_in_prompt, vocabulary=self.vocabulary
                )
        return Record(
            sample_id=study if self.config.group_by_study else str(name),
            study_id=study,
            media=tuple(images),
            turns=questions.CodesAsImage(turns, self._codes(row))
            if self.config.codes_as_image
            else turns,
            meta=meta,
        )

    def _file(self, key: str, name: object) -> str:
        """The path of a file that goes along with a record."""
        try:
            return str(Path(image_in(Path(self.config.storage), name)).absolute())
        except RecordError as error:
            raise RecordError(f"{key}: {str(error).replace('image', 'file')}") from None

    def _named(self, codes: list[str]) -> set[str]:
        """What questions can be about."""
        by_finding = self.config.ask == "findings"
        return self.vocabulary.coded_findings(codes) if by_finding else questions.headings(codes)

    def _asked_apart(self, record: Record, row: dict, asked: list[str]) -> Iterator[Record]:
        """A record for each question."""
        marks = " ".join([IMAGE] * len(record.media))
        by_finding = self.config.ask == "findings"
        question = self.vocabulary.question if by_finding else questions.code_question
        present = self._named(self._codes(row))
        for name in asked:
            turns = questions.pair(
                f"{marks} {question(name)}", "yes." if name in present else "no."
            )
            yield replace(record, sample_id=f"{record.sample_id}/{name}", turns=turns)

    def _codes(self, row: dict) -> list[str]:
        if self.config.codes_from == "report":
            texts = (row.get(section) for section in self.config.sections)
            text = "\n".join(t for t in texts if isinstance(t, str))
            return list(self.vocabulary.codes_of_report(text))
        return self._coding(row)

    def _coding(self, row: dict) -> list[str]:
        codes = row.get(self.config.fields.codes) or []
        return codes.split(";") if isinstance(codes, str) else [str(c) for c in codes]

    def _turns(
        self, row: dict, images: int, clean: Callable[[str], str], asked: list[str]
    ) -> tuple[Turn, ...] | Callable[[str], list[Turn]]:
        target, names = self.config.target, self.config.fields
        marks = " ".join([IMAGE] * images)
        if target == "auto":
            target = "report"
            if row.get(names.turns):
                return _own_turns(row[names.turns], images)
            if row.get(names.question):
                target = "question"
        if target == "none":
            return (Turn(role="user", text=marks),)
        if target == "codes":
            return questions.code_list(marks, self._codes(row))
        if target == "every_code_question":
            return ()  # each is a record of its own
        if target == "code_questions":
            return questions.CodeQuestions(
                marks,
                self._codes(row),
                asked,
                self.config.questions,
                with_sides=self.config.question_sides,
                findings=self.vocabulary if self.config.ask == "findings" else None,
            )
        if target == "question":
            question, answer = row.get(names.question), row.get(names.answer)
            if not isinstance(question, str) or answer in (None, ""):
                raise RecordError(f"no question ({names.question}) or no answer ({names.answer})")
            return questions.pair(f"{marks} {question.strip()}", clean(str(answer)))
        return questions.pair(marks, self._report(row, clean))

    def _report(self, row: dict, clean: Callable[[str], str]) -> str:
        parts = []
        for section in self.config.sections:
            text = row.get(section)
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise RecordError(f"{section} is no text but {type(text).__name__}")
            text = clean(text)
            if text:
                parts.append(f"{section.capitalize()}: {text}" if self.config.headings else text)
        if not parts:
            raise RecordError(f"empty text (sections: {', '.join(self.config.sections)})")
        return " ".join(parts)


def _own_turns(rows: Any, images: int) -> tuple[Turn, ...]:
    """The row's own conversation; images its text does not place come first."""
    turns = []
    for row in rows if isinstance(rows, list) else []:
        role, text = (row.get("role"), row.get("text")) if isinstance(row, dict) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(text, str):
            raise RecordError("a turn is {role: system|user|assistant, text: some text}")
        turns.append(Turn(role=role, text=text))
    user = next((i for i, t in enumerate(turns) if t["role"] == "user"), None)
    if user is None or not any(t["role"] == "assistant" for t in turns):
        raise RecordError("turns hold no question or no answer")
    if images and not any(IMAGE in t["text"] or VIDEO in t["text"] for t in turns):
        marks = " ".join([IMAGE] * images)
        turns[user] = Turn(role="user", text=f"{marks} {turns[user]['text']}")
    return tuple(turns)


def read_table(path: Path, layout: str = "auto") -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL, JSON or CSV file with their number: the line, or the place in the array.

    Raises:
        DataError: The file is absent, of no known ending, or a row is no object; says the line.
    """
    layout = path.suffix.lstrip(".").lower() if layout == "auto" else layout
    if layout not in ("jsonl", "json", "csv"):
        raise DataError(f"{path}: set format to jsonl, json or csv; the ending does not tell")
    if layout == "json":
        content = load_json(path)
        rows = content if isinstance(content, list) else [content]
        numbered: Iterator[tuple[int, Any]] = iter(enumerate(rows))
    else:
        numbered = _lines(path, layout)
    for number, row in numbered:
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, record {number}: expected an object, got {type(row).__name__}"
            )
        yield number, row


def _cells(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV, parted by commas, semicolons or tabs; those with empty cells alone go."""
    heading = file.readline()
    file.seek(0)
    parted = max(",;\t", key=heading.count)
    reader = csv.DictReader(file, delimiter=parted, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    for row in reader:
        if None in row:
            raise DataError(f"{path}, line {reader.line_num}: more cells than headings")
        if any((cell or "").strip() for cell in row.values()):
            yield reader.line_num, row


def _lines(path: Path, layout: str) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if layout == "csv":
                yield from _cells(path, file)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except OSError as error:
        raise DataError(f"cannot read the annotations {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number} is not JSON: {error.msg}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {layout}: {error}") from None
