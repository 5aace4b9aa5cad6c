"""Prompt files: front matter with task and version, then the parts system, user and repair."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from xraygpt.common.errors import InputError

PROMPT_FOLDER = Path(__file__).resolve().parents[3] / "prompts" / "curation"
_REQUIRED = {"task", "version"}
_PARTS = ("system", "user", "repair")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n(.*)\Z", re.DOTALL)
_HEADING = re.compile(r"^# (\w+)[ \t]*$", re.MULTILINE)
_FILE_NAME = re.compile(r"\w+\.v(\d+)\.md")


@dataclass(frozen=True)
class Prompt:
    """A versioned prompt.

    Attributes:
        task: Name of the task it is for.
        version: The version stated in the front matter.
        system: The system message.
        user: A template that uses `sections` (heading -> text).
        repair: A template that uses `reasons`, which say why the first answer was rejected.
    """

    task: str
    version: str
    system: str
    user: str
    repair: str

    @property
    def sha256(self) -> str:
        """The hash of `system` and `user`, which every answer depends on."""
        return _hash(self.system, self.user)

    @property
    def repair_sha256(self) -> str:
        """The hash of `repair`, which only repaired answers depend on."""
        return _hash(self.repair)

    def render_user(self, sections: Mapping[str, str]) -> str:
        """Render the user message for a report."""
        return _render(self.user, sections=sections)

    def render_repair(self, reasons: Sequence[str]) -> str:
        """Render the user message that follows a rejected answer."""
        return _render(self.repair, reasons=reasons)

    def check_templates(self, sections: Mapping[str, str]) -> None:
        """Render both templates once to find errors in them.

        Raises:
            InputError: A template uses an undefined variable.
        """
        try:
            self.render_user(sections)
            self.render_repair(["x"])
        except TemplateError as error:
            names = ", ".join(sections)
            raise InputError(
                f"the prompt for {self.task}: {error}; `user` can use `sections` ({names}), and "
                "`repair` can use `reasons`"
            ) from None


def load_prompt(task: str, path: Path | None = None) -> Prompt:
    """Load a prompt file, by default the newest version in `prompts/curation/`.

    Raises:
        InputError: The file is missing, lacks a part, or is for another task.
    """
    path = path or _newest(task)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompt {path}: {error}") from None
    front_matter, body = _split_front_matter(path, text)
    if front_matter["task"] != task:
        raise InputError(f"{path} is a prompt for the task {front_matter['task']}, not for {task}")
    parts = _parse_parts(path, body)
    prompt = Prompt(task, str(front_matter["version"]), *(parts[name] for name in _PARTS))
    prompt.check_templates({"findings": "x", "impression": "x"})
    return prompt


def _split_front_matter(path: Path, text: str) -> tuple[dict[str, Any], str]:
    match = _FRONT_MATTER.match(text)
    try:
        front_matter = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        front_matter = None
    if match is None or not isinstance(front_matter, dict) or _REQUIRED - set(front_matter):
        raise InputError(f"{path} must start with front matter (---) with task and version")
    return front_matter, match[2]


def _parse_parts(path: Path, body: str) -> dict[str, str]:
    pieces = _HEADING.split(body)
    parts = dict(zip(pieces[1::2], (p.strip() for p in pieces[2::2]), strict=True))
    missing = [f"# {name}" for name in _PARTS if not parts.get(name)]
    if missing:
        raise InputError(f"{path} lacks the part {', '.join(missing)}")
    return parts


def _newest(task: str) -> Path:
    matches = ((_FILE_NAME.fullmatch(p.name), p) for p in PROMPT_FOLDER.glob(f"{task}.v*.md"))
    versions = {int(match[1]): path for match, path in matches if match}
    if not versions:
        raise InputError(
            f"no prompt {task}.v*.md in {PROMPT_FOLDER}, a folder that only a clone of the project "
            "contains; name a prompt file with --prompt"
        )
    return versions[max(versions)]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _render(template: str, **values: object) -> str:
    return _compiled(template).render(**values).strip()


@functools.cache
def _compiled(template: str) -> Template:
    environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    return environment.from_string(template)
