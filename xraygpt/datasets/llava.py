"""Corpora in LLaVA's format: JSON, JSONL or Parquet, patterns, and its YAML list of files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import yaml

from xraygpt.common.errors import DataError
from xraygpt.common.json_stream import iter_records
from xraygpt.common.keyed_random import keyed_random
from xraygpt.common.registry import did_you_mean, registry
from xraygpt.common.requirements import CorpusLayout, Missing, missing_corpus
from xraygpt.datasets.base import Record
from xraygpt.datasets.conversation_builder import ConversationBuilder, SourceFile
from xraygpt.datasets.conversation_rows import Columns, Tags

_COLUMNS = Columns(messages="conversations", images="image", videos="video")
_LAYOUT = CorpusLayout(None, None, "docs/vlm_data.md describes LLaVA's format")
_STRATEGY = re.compile(r"^(all|(first|end|random):(\d+)(%?))$")


@registry.register_builder("llava")
class Llava(ConversationBuilder):
    """Records ``{id, image, video, conversations: [{from, value}]}``."""

    @dataclass(kw_only=True)
    class Config(ConversationBuilder.Config):
        """Settings; `annotations` may be a pattern ``{a,b}.json`` or a YAML list of files."""

        layout: ClassVar[CorpusLayout] = _LAYOUT

        def missing(self, where: str) -> list[Missing]:
            """List the folder if it is missing; patterns are expanded later."""
            return missing_corpus(where, self.layout, self.storage, None, self.images)

    config: Config

    def sources(self) -> Iterator[SourceFile]:
        """Yield the files with the records that are sampled from each."""
        storage = self.storage_folder("LLaVA corpus", "docs/vlm_data.md describes its content")
        if self.config.annotations is None:
            raise DataError(f"{self.key('annotations')}: set it to the file of conversations")
        for path, strategy in _expand(storage, str(self.config.annotations)):
            keep = _sampler(path, strategy, self.seed)
            yield SourceFile(path, "sharegpt", _COLUMNS, Tags(), "", path.stem, keep)

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Yield the records of all files; see `BaseBuilder.records`."""
        for source in self.sources():
            yield from self.read_source(source, clean)


def _expand(storage: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yield the files that `annotations` names, with their sampling strategies."""
    if name.endswith((".yaml", ".yml")):
        yield from _read_list(storage, storage / name)
        return
    match = re.fullmatch(r"(.*)\{([^{}]*)\}(.*)", name)
    names = (
        [f"{match[1]}{part.strip()}{match[3]}" for part in match[2].split(",")] if match else [name]
    )
    for each in names:
        path = storage / each
        if not path.is_file():
            raise DataError(f"there is no file {path} (annotations: {name})")
        yield path, "all"


def _read_list(storage: Path, path: Path) -> Iterator[tuple[Path, str]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML: {error}") from None
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected the list 'datasets'")
    for i, entry in enumerate(entries):
        where = f"{path}, entry {i}"
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
            raise DataError(f"{where}: expected json_path and sampling_strategy")
        for key in entry:
            if key not in ("json_path", "sampling_strategy"):
                known = ("json_path", "sampling_strategy")
                raise DataError(f"{where}: unknown key '{key}'{did_you_mean(str(key), known)}")
        strategy = str(entry.get("sampling_strategy", "all"))
        if not _STRATEGY.match(strategy):
            raise DataError(
                f"{where}: sampling_strategy '{strategy}' is not all, first:N, end:N or random:N, "
                "where N is a number or a percentage"
            )
        for file, _ in _expand(storage, entry["json_path"]):
            yield file, strategy


def _sampler(path: Path, strategy: str, seed: int) -> Callable[[int], bool] | None:
    """Return which records of a file are used; None uses all."""
    match = _STRATEGY.match(strategy)
    if match is None or strategy == "all":
        return None
    total = sum(1 for _ in iter_records(path))
    number = int(match[3])
    count = -(-total * number // 100) if match[4] else number
    if match[2] == "first":
        return lambda index: index < count
    if match[2] == "end":
        return lambda index: index >= total - count
    chosen = frozenset(
        keyed_random(seed, path.name, "sampling").sample(range(total), min(count, total))
    )
    return lambda index: index in chosen
