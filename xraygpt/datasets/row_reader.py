"""Reading of the ids, split, media, codes and metadata in the rows of a table of studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xraygpt.datasets.base import Record
from xraygpt.datasets.media_paths import RecordError, parse_media_ref, resolve_image
from xraygpt.datasets.table_fields import Row
from xraygpt.media.base import MediaRef
from xraygpt.media.clip_policy import ClipPolicy
from xraygpt.vocabulary import Vocabulary, get_vocabulary, questions
from xraygpt.vocabulary.openi import reserved_split

if TYPE_CHECKING:
    from xraygpt.datasets.records import RecordsBuilder


class RowReader:
    """Reads the fields of a row as the settings describe them.

    Args:
        config: Settings of the table.
        root: Folder that contains all images.
    """

    def __init__(self, config: RecordsBuilder.Config, root: Path) -> None:
        self.config, self.names, self.root = config, config.fields, root

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the corpus's findings."""
        return get_vocabulary(self.config.vocabulary)

    def study_id(self, row: Row) -> str:
        """Return the study id with its prefix; an image without a study counts as its own study.

        Raises:
            RecordError: The row has neither a study nor an image nor an id.
        """
        study = row.get(self.names.study)
        if study in (None, ""):
            study = row.get(self.names.image) or row.get(self.names.id)
        if not isinstance(study, (str, int)):
            raise RecordError(f"the study id is missing (fields.study: {self.names.study})")
        return f"{self.config.study_prefix}{study}"

    def record_id(self, row: Row, media: Sequence[MediaRef]) -> str:
        """Return the row's id, or the path of its first image without the suffix, or its study."""
        name = row.get(self.names.id)
        if name in (None, ""):
            if not media:
                return self.study_id(row)
            path = media[0].path  # not just the file name, which several folders may contain
            return str(path.relative_to(self.root)).removesuffix(path.suffix)
        return str(name)

    def split_of_study(self, study_id: str, row: Row) -> str | None:
        """Return the split of the row's study, or of its patient.

        A reserved split of OpenI also follows from the row's id or the name of an image.
        """
        names = (Path(str(n)).name for n in (row.get(self.names.id), *self._image_names(row)) if n)
        # "CXR7" alone may be the id of a row in any corpus.
        reserved = (reserved_split(name) for name in names if "IM-" in name)
        if split := next(filter(None, reserved), None):
            return split
        rule = self.config.split
        value = row.get(rule.field) if rule.field else None
        listed_split = str(value) if value else None
        return rule.assign_grouped(study_id, row.get(self.names.patient), listed_split)

    def split_of_record(self, row: Row, record: Record) -> str | None:
        """Return a record's split, which is reserved if one of its images is."""
        reserved = (reserved_split(ref.name) for ref in record.media)
        return next(filter(None, reserved), None) or self.split_of_study(record.study_id, row)

    def _image_names(self, row: Row) -> Iterator[object]:
        """Yield the names of the row's images without checking that the files exist."""
        for item in (row.get(self.names.image), row.get(self.names.images)):
            for entry in item if isinstance(item, list) else [item]:
                yield entry.get("path") if isinstance(entry, dict) else entry

    def media(self, row: Row) -> Iterator[MediaRef]:
        """Yield the row's media that have one of the configured views.

        Raises:
            RecordError: A file is missing, or an entry is invalid.
        """
        items, default_view = row.get(self.names.images), ""
        if not isinstance(items, list):
            image = row.get(self.names.image)
            items = image if isinstance(image, list) else [] if image in (None, "") else [image]
            default_view = str(row.get(self.names.view) or "")
        for item in items:
            entry = {"path": item} if isinstance(item, str) else item
            ref = parse_media_ref(entry, partial(resolve_image, self.root), default_view)
            if self.config.views is None or ref.view in self.config.views:
                yield ClipPolicy(sampling=self.config.frames).sampled(ref)

    def human_codes(self, row: Row) -> list[str]:
        """Return the codes in the row's `codes` field."""
        codes = row.get(self.names.codes) or []
        return codes.split(";") if isinstance(codes, str) else [str(c) for c in codes]

    def codes(self, row: Row) -> list[str]:
        """Return the codes from the source that `codes_from` selects."""
        if self.config.codes_from == "coding":
            return self.human_codes(row)
        sections = (row.get(section) for section in self.config.sections)
        text = "\n".join(s for s in sections if isinstance(s, str))
        return list(self.vocabulary.codes_of_report(text))

    def askable_names(self, codes: Sequence[str]) -> set[str]:
        """Return the codes' headings or findings, whichever `ask` selects for questions."""
        if self.config.ask == "findings":
            return self.vocabulary.coded_findings(codes)
        return questions.headings(codes)

    def meta(self, row: Row, media: Sequence[MediaRef]) -> dict[str, Any]:
        """Return the `Sample.meta` of the row.

        Raises:
            RecordError: A file in `fields.files` is missing.
        """
        names = self.names
        meta = {key: row[key] for key in names.keep if key in row}
        meta |= {key: self._resolve_file(key, row[key]) for key in names.files if row.get(key)}
        meta |= {"codes": self.human_codes(row), "views": [ref.view for ref in media]}
        meta["sections"] = {s: row[s] for s in self.config.sections if row.get(s)}
        return meta

    def _resolve_file(self, key: str, name: object) -> str:
        try:
            return str(Path(resolve_image(Path(self.config.storage), name)).absolute())
        except RecordError as error:
            raise RecordError(f"{key}: {str(error).replace('image', 'file')}") from None
