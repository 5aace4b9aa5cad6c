"""Prompts as files: front matter with task and version, then the parts system, user and repair."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from xraygpt.common.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "prompts" / "curation"
_PARTS = ("system", "user", "repair")
_FRONT = re.compile(r"\A---\n(.*?)\n---\n(.*)\Z", re.DOTALL)
_HEADING = re.compile(r"^# (\w+)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A versioned prompt.

    Attributes:
        task: Name of the task it is for.
        version: As its front matter says.
        system: What the model is told to do.
        user: Template over `sections`, heading -> text.
        repair: Template over `reasons`, why the first answer cannot be used.
    """

    task: str
    version: str
    system: str
    user: str
    repair: str

    @property
    def sha256(self) -> str:
        """Of the parts every answer depends on; `repair` has a hash of its own."""
        return _hash(self.system, self.user)

    @property
    def repair_sha256(self) -> str:
        """Of the part that only repaired answers depend on."""
        return _hash(self.repair)

    def ask(self, sections: Mapping[str, str]) -> str:
        """The user's message for a report."""
        return _render(self.user, sections=sections)

    def check(self, sections: Mapping[str, str]) -> None:
        """Try both templates.

        Raises:
            InputError: One names what it is not given.
        """
        try:
            self.ask(sections)
            self.ask_again(["x"])
        except TemplateError as error:
            known = ", ".join(sections)
            raise InputError(
                f"the prompt of {self.task}: {error}; `user` knows `sections` ({known}), `repair` "
                "knows `reasons`"
            ) from None

    def ask_again(self, reasons: Sequence[str]) -> str:
        """The user's second message, after an answer that cannot be used."""
        return _render(self.repair, reasons=reasons)


def load_prompt(task: str, path: Path | None = None) -> Prompt:
    """A prompt file; without a path the newest version in `prompts/curation/`.

    Raises:
        InputError: It is absent, lacks a part, or is for another task.
    """
    path = path or _newest(task)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompt {path}: {error}") from None
    match = _FRONT.match(text)
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        front = None
    if match is None or not isinstance(front, dict) or {"task", "version"} - set(front):
        raise InputError(f"{path}: starts with no front matter (---) that says task and version")
    if front["task"] != task:
        raise InputError(f"{path} is a prompt for the task {front['task']}, not for {task}")
    pieces = _HEADING.split(match[2])
    parts = dict(zip(pieces[1::2], (p.strip() for p in pieces[2::2]), strict=True))
    missing = [name for name in _PARTS if not parts.get(name)]
    if missing:
        raise InputError(f"{path} lacks the part {', '.join(f'# {name}' for name in missing)}")
    prompt = Prompt(task, str(front["version"]), *(parts[name] for name in _PARTS))
    prompt.check({"findings": "x", "impression": "x"})
    return prompt


def _newest(task: str) -> Path:
    found = {int(m[1]): p for p in FOLDER.glob(f"{task}.v*.md") if (m := _version(p))}
    if not found:
        raise InputError(
            f"no prompt {task}.v*.md in {FOLDER}: it comes with a clone of the project; "
            "name a file of your own with --prompt"
        )
    return found[max(found)]


def _version(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"\w+\.v(\d+)\.md", path.name)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _render(template: str, **values: object) -> str:
    return _compiled(template).render(**values).strip()


@functools.cache
def _compiled(template: str) -> Template:
    environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    return environment.from_string(template)
