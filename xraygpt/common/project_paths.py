"""Paths in a YAML file: relative to the working directory, or else to the file's project.

The project of a YAML file is the nearest folder above it that contains `eval_configs` or
`train_configs`, or else the file's own folder. A Config field whose value is such a path has one of
the types defined here. Folders that a run writes are relative to the working directory only.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

_CONFIG_FOLDERS = ("eval_configs", "train_configs")


@dataclass(frozen=True)
class InProject:
    """Marks a field whose value is an input path, or a name that may contain one.

    Attributes:
        prefix: Text before the path; a value without it is a name and stays unchanged.
        suffix: Optional text after the path.
    """

    prefix: str = ""
    suffix: str = ""

    def resolve(self, value: Any, project: Path) -> Any:
        """Return the value with its path below `project` if it exists there but not here."""
        text = str(value)
        if value is None or not text.startswith(self.prefix):
            return value
        path = text.removeprefix(self.prefix).removesuffix(self.suffix)
        if Path(path).is_absolute() or _exists(Path(path)) or not _exists(project / path):
            return value
        return type(value)(text.replace(path, os.fspath(project / path), 1))


ProjectPath = Annotated[Path, InProject()]
ProjectName = Annotated[str, InProject()]
"""A path, or a name such as that of a package's LLM."""
EncoderName = Annotated[str, InProject("run/", "+base")]
"""One of `registry.list_encoders()`, which may name a run."""


def find_project(config_file: Path) -> Path:
    """Return the project folder of a YAML file."""
    folder = config_file.resolve().parent
    for candidate in (folder, *folder.parents):
        if any((candidate / name).is_dir() for name in _CONFIG_FOLDERS):
            return candidate
    return folder


def resolve_paths(config: Any, project: Path) -> None:
    """Resolve the marked paths of a configuration in place.

    Args:
        config: A dataclass, with further ones in its fields, lists and dicts.
        project: The folder to try if a relative path does not exist in the working directory.
    """
    if isinstance(config, dict):
        for item in config.values():
            resolve_paths(item, project)
    elif isinstance(config, (list, tuple)):
        for item in config:
            resolve_paths(item, project)
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        hints = get_type_hints(type(config), include_extras=True)
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if mark := _mark(hints[field.name]):
                setattr(config, field.name, mark.resolve(value, project))
            else:
                resolve_paths(value, project)


def _mark(hint: Any) -> InProject | None:
    """Return the mark of a field's type, which may also allow None."""
    for part in (hint, *get_args(hint)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, InProject):
                return meta
    return None


def _exists(path: Path) -> bool:
    """Check whether a path exists; `<run>/best` names a checkpoint of an existing run."""
    return path.exists() or (path.name == "best" and path.parent.is_dir())
