"""The wording of questions and answers, from ``data/instructions.yaml`` or a file like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from xraygpt.common.errors import DataError
from xraygpt.common.keyed_random import keyed_int

_PLURAL = (
    "structures",
    "lungs",
    "zones",
    "angles",
    "clavicles",
    "hila",
    "hemidiaphragms",
    "devices",
)


@dataclass(frozen=True, slots=True)
class Name:
    """A finding as it stands in a sentence.

    Attributes:
        noun: Such as "nodule or mass".
        article: Such as "a"; "" if it is not counted.
        several: Its plural; the noun if it is not counted.
        any: Word that replaces the article in questions; "" keeps the article.
    """

    noun: str
    article: str = ""
    several: str = ""
    any: str = ""

    def stated(self, count: int) -> str:
        """Return the noun with its article, or its plural for several boxes."""
        if count > 1:
            return self.several or self.noun
        return f"{self.article} {self.noun}".lstrip()

    def asked(self) -> str:
        """Return the noun as questions about its presence name it."""
        return f"{self.any or self.article} {self.noun}".lstrip()

    def verb(self, count: int) -> str:
        """Return "is" or "are"."""
        return "are" if count > 1 and self.several not in ("", self.noun) else "is"


class Wording:
    """Templates and names.

    Args:
        content: The content of the file.
        where: Its path, for messages.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        names = content.get("names") or {}
        self.templates = {task: value for task, value in content.items() if task != "names"}
        self.where = where
        self._names = {
            _key(name): _name(row, f"{where}: names: {name}") for name, row in names.items()
        }

    def name(self, label: str) -> Name:
        """Return how a finding is named in sentences."""
        return self._names.get(_key(label)) or Name(lower_first(label.replace("_", " ")))

    def draw(self, task: str, kind: str, *key: object) -> str:
        """Return one of the templates, chosen by a hash of the key.

        Args:
            task: Name of the task.
            kind: ``questions``, ``answers`` or ``none``.
            key: What determines the choice: the seed and the item.

        Raises:
            DataError: The file has no such templates.
        """
        options = self.templates.get(task, {}).get(kind)
        if not options:
            raise DataError(f"{self.where}: there are no {kind} for the task {task}")
        chosen: str = options[keyed_int(*key, kind) % len(options)]
        return chosen

    def template(self, task: str, kind: str) -> str:
        """Return a template that has no variants."""
        return str(self.templates[task][kind])


@lru_cache(maxsize=4)
def load_wording(path: Path | None = None) -> Wording:
    """Return the wording from a file; None uses that of the package.

    Raises:
        DataError: The file cannot be read or has another form.
    """
    source = path or resources.files("xraygpt").joinpath("data/instructions.yaml")
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise DataError(f"{source} is not YAML: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise DataError(f"{source}: expected a section for each task")
    return Wording(content, str(source))


def lower_first(text: str) -> str:
    """Lower the first letter of a name, unless its first word is an acronym such as ILD."""
    first = text.split(" ", 1)[0]
    if len(first) > 1 and first.isupper():
        return text
    words = text.split(" ")
    return " ".join(w if len(w) > 1 and w.isupper() else w.lower() for w in words)


def upper_first(text: str) -> str:
    """Capitalise the first letter and leave the rest."""
    return text[:1].upper() + text[1:]


def is_plural(region: str) -> bool:
    """Check whether the name of a region is a plural, such as "right hilar structures"."""
    return region.split(" ")[-1] in _PLURAL


def enumerate_words(words: Sequence[str], separator: str = ", ") -> str:
    """Join words with commas and a final "and"."""
    if len(words) < 2:
        return "".join(words)
    return f"{separator.join(words[:-1])} and {words[-1]}"


def _key(name: str) -> str:
    return name.casefold().replace("_", " ")


def _name(row: Any, where: str) -> Name:
    known = {"noun", "article", "several", "any"}
    if not isinstance(row, dict) or "noun" not in row or not row.keys() <= known:
        raise DataError(f"{where}: expected noun and perhaps article, several, any")
    return Name(**row)
