"""Corpora in the formats of LLaMA-Factory: `dataset_info.json` and the files that it describes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.json_stream import read_json_object
from xraygpt.common.keyed_random import keyed_int, keyed_random
from xraygpt.common.registry import did_you_mean, registry
from xraygpt.common.requirements import CorpusLayout
from xraygpt.datasets.base import Record
from xraygpt.datasets.conversation_builder import ConversationBuilder, SourceFile
from xraygpt.datasets.conversation_rows import Columns, Tags

log = logging.getLogger(__name__)

INFO = "dataset_info.json"
FORMATS = ("alpaca", "sharegpt", "openai")
_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
_NETWORK = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_OTHER_COLUMNS = ("tools", "chosen", "rejected", "kto_tag")
_TAG_NAMES = {f"{f.name}_tag": f.name for f in fields(Tags)}
_KNOWN = (
    "file_name", "formatting", "columns", "tags", "split", "subset", "folder", "num_samples",
    "ranking", *_NETWORK,
)  # fmt: skip
_LAYOUT = CorpusLayout(
    INFO, None, "it lists the data files; docs/llama_factory.md shows an example"
)


@dataclass(frozen=True)
class DatasetEntry:
    """One entry of `dataset_info.json`.

    Attributes:
        name: Its name.
        files: The data files.
        layout: One of `FORMATS`.
        columns: Names of the fields.
        tags: Names in the messages.
        num_samples: Number of records to use, chosen at random; more than there are repeats some.
    """

    name: str
    files: tuple[Path, ...]
    layout: str
    columns: Columns
    tags: Tags
    num_samples: int | None = None


@registry.register_builder("llama_factory")
class LlamaFactory(ConversationBuilder):
    """Reads data sets by their names in `dataset_info.json`."""

    @dataclass(kw_only=True)
    class Config(ConversationBuilder.Config):
        """Settings; `storage` is LLaMA-Factory's `dataset_dir`, `images` its `media_dir`."""

        layout: ClassVar[CorpusLayout] = _LAYOUT

        dataset: list[str] = field(default_factory=list)
        """Names of the data sets to train on."""
        eval_dataset: list[str] = field(default_factory=list)
        """Names of the data sets to validate on, or to predict."""
        eval_split: str = "val"
        """Split of `eval_dataset`: val, or test for prediction."""
        max_records: int | None = None
        """Use only the first records of each data set."""
        val_fraction: float = 0.0
        """Share of the studies in `dataset` that are used for validation instead of training."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.include(super().__post_init__)
                check.at_least(1, "max_records")
                check.fraction_below_one("val_fraction")
                none = not self.dataset and not self.eval_dataset
                check.refuse(none, "dataset", f"is empty; name an entry of {INFO}")

    config: Config

    def sources(self) -> Iterator[SourceFile]:
        """Yield the files of all data sets, with their formats and splits."""
        storage = self.storage_folder("dataset_dir", f"It must contain {INFO}")
        info_file = storage / (self.config.annotations or INFO)
        info = read_json_object(info_file)
        splits = [("train", name) for name in self.config.dataset]
        splits += [(self.config.eval_split, name) for name in self.config.eval_dataset]
        for split, name in splits:
            entry = parse_entry(info, name, info_file)
            for file in entry.files:
                yield SourceFile(file, entry.layout, entry.columns, entry.tags, split, entry.name)

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Yield the records of all data sets; see `BaseBuilder.records`."""
        storage = self.storage_folder("dataset_dir", f"It must contain {INFO}")
        info_file = storage / (self.config.annotations or INFO)
        info = read_json_object(info_file)
        for source_name, group in _by_name(self.sources()):
            rows = (row for source in group for row in self.read_source(source, clean))
            count = parse_entry(info, source_name, info_file).num_samples
            chosen = rows if count is None else _resample(list(rows), count, self.seed)
            yield from islice(map(self._hold_out, chosen), self.config.max_records)

    def _hold_out(self, row: tuple[str | None, Record | str]) -> tuple[str | None, Record | str]:
        """Move a share of the training studies to val."""
        split, record = row
        if split == "train" and isinstance(record, Record) and self.config.val_fraction:
            point = keyed_int("val_fraction", self.seed, record.study_id) / 2**63
            return ("val" if point < self.config.val_fraction else "train"), record
        return row


def _by_name(sources: Iterator[SourceFile]) -> Iterator[tuple[str, list[SourceFile]]]:
    groups: dict[tuple[str, str], list[SourceFile]] = {}
    for source in sources:
        groups.setdefault((source.split, source.name), []).append(source)
    for (_, name), group in groups.items():
        yield name, group


def _resample(
    rows: Sequence[tuple[str | None, Record | str]], count: int, seed: int
) -> Iterator[tuple[str | None, Record | str]]:
    """Choose rows at random; all of them and further ones if there are fewer."""
    rng = keyed_random(seed, "num_samples")
    order = list(range(len(rows)))
    rng.shuffle(order)
    extra = [rng.randrange(len(rows)) for _ in range(count - len(rows))] if rows else []
    for i in [*order[:count], *extra]:
        yield rows[i]


def parse_entry(info: Mapping[str, Any], name: str, info_file: Path) -> DatasetEntry:
    """Parse one entry of `dataset_info.json`.

    If an entry has `columns` (or `tags`), those that it does not list do not exist; otherwise the
    defaults of its format apply.

    Raises:
        DataError: The entry is missing or invalid, or its data must be downloaded.
    """
    if name not in info:
        hint = did_you_mean(name, list(info))
        raise DataError(f"{info_file} has no data set '{name}'{hint}")
    entry = info[name]
    where = f"{info_file}, {name}"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, got {type(entry).__name__}")
    for key in entry:
        if key not in _KNOWN:
            raise DataError(f"{where}: unknown key '{key}'{did_you_mean(key, _KNOWN)}")
    if entry.get("ranking"):
        raise DataError(f"{where}: pairs of answers (ranking) are for stages other than sft")
    layout = entry.get("formatting", "alpaca")
    if layout not in FORMATS:
        hint = did_you_mean(str(layout), FORMATS)
        raise DataError(f"{where}: formatting '{layout}' is none of {', '.join(FORMATS)}{hint}")
    columns = _parse_columns(entry.get("columns"), layout, where)
    tags = _parse_tags(entry.get("tags"), layout, where)
    _require_fields(layout, columns, tags, where)
    return DatasetEntry(
        name,
        _find_files(entry, info_file.parent, where),
        layout,
        columns,
        tags,
        _positive(entry.get("num_samples"), where),
    )


def _require_fields(layout: str, columns: Columns, tags: Tags, where: str) -> None:
    """Check that `columns` and `tags`, if given, list what every record needs."""
    if layout == "alpaca":
        needed = {"columns": {n: getattr(columns, n) for n in ("prompt", "response")}}
    else:
        names = {f"{n}_tag": getattr(tags, n) for n in ("role", "content", "user", "assistant")}
        needed = {"columns": {"messages": columns.messages}, "tags": names}
    for section, listed in needed.items():
        missing = [name for name, value in listed.items() if not value]
        if missing:
            raise DataError(f"{where}: {section} must list {', '.join(missing)}, too")


def _find_files(entry: Mapping[str, Any], folder: Path, where: str) -> tuple[Path, ...]:
    remote = next((key for key in _NETWORK if key in entry), None)
    name = entry.get("file_name")
    if not isinstance(name, str):
        what = f"{remote} is not downloaded; " if remote else ""
        raise DataError(f"{where}: {what}set file_name to a file in {folder}")
    path = folder / name
    if path.is_dir():
        files = tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES))
        if files:
            return files
        raise DataError(f"{where}: {path} contains no {', '.join(_SUFFIXES)} file")
    if not path.is_file():
        raise DataError(f"{where}: there is no file {path}")
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{where}: {path.name} is none of {', '.join(_SUFFIXES)}")
    return (path,)


def _parse_columns(given: Any, layout: str, where: str) -> Columns:
    names = {f.name for f in fields(Columns)}
    if given is None:
        return Columns() if layout != "openai" else Columns(messages="messages")
    if not isinstance(given, dict):
        raise DataError(f"{where}: columns must be an object")
    for key in given:
        if key not in names and key not in _OTHER_COLUMNS:
            raise DataError(f"{where}: unknown column '{key}'{did_you_mean(key, sorted(names))}")
    return Columns(**{name: given.get(name) for name in names})


def _parse_tags(given: Any, layout: str, where: str) -> Tags:
    if given is None:
        return Tags() if layout != "openai" else OPENAI_TAGS
    if not isinstance(given, dict):
        raise DataError(f"{where}: tags must be an object")
    for key in given:
        if key not in _TAG_NAMES:
            raise DataError(f"{where}: unknown tag '{key}'{did_you_mean(key, list(_TAG_NAMES))}")
    return Tags(**{field_name: given.get(tag) for tag, field_name in _TAG_NAMES.items()})


def _positive(value: Any, where: str) -> int | None:
    if value is None or (isinstance(value, int) and value > 0):
        return value
    raise DataError(f"{where}: num_samples must be a positive whole number, got {value!r}")


OPENAI_TAGS = replace(
    Tags(), role="role", content="content", user="user", assistant="assistant",
    observation="tool", function="function_call",
)  # fmt: skip
