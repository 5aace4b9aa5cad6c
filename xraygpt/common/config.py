"""Turns YAML files into typed, checked dataclasses; no other code handles raw dicts or defaults.

Precedence: dataclass default < preset < user YAML < ``--options``. All problems are collected and
reported with their line numbers.
"""

from __future__ import annotations

import dataclasses
import logging
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError

from xraygpt.common import llama_factory, model_keys
from xraygpt.common.checks import SettingsError
from xraygpt.common.config_reading import (
    INVALID,
    Report,
    is_plugin_base,
    join,
    merge_layers,
    read_yaml,
)
from xraygpt.common.errors import ConfigError
from xraygpt.common.legacy import modernise
from xraygpt.common.project_paths import find_project, resolve_paths
from xraygpt.common.registry import BUILDERS, MODELS, Registry, did_you_mean

log = logging.getLogger(__name__)


class Choice:
    """Metadata in `Annotated[str, Choice(REGISTRY)]`: the value must be a registered name."""

    def __init__(self, names: Registry) -> None:
        self.names = names


def load(schema: type, path: str | Path, options: Iterable[str] = ()) -> Any:
    """Read the YAML file at `path`, apply ``key.path=value`` options and return a checked `schema`.

    Args:
        schema: A dataclass whose fields are the sections that the YAML file may have.
        path: The YAML file.
        options: Command-line overrides of the form ``dotted.key=value`` with a YAML value.

    Raises:
        InputError: The file cannot be read.
        ConfigError: The configuration has problems; the message lists all unknown keys, bad
            values, missing fields and broken interpolations.
    """
    path = Path(path)
    problems: list[tuple[int, str]] = []  # (line, message); line 0 is the command line
    lines: dict[str, int] = {}

    def report(where: str, problem: str) -> None:
        where = _as_given(where, lines)
        line = next((lines[k] for k in _ancestors(where) if k in lines), 1)
        source = f"line {line}" if line else "--options"
        message = ": ".join(filter(None, (source, where, problem)))
        if (line, message) not in problems:
            problems.append((line, message))

    user = read_yaml(path, lines, report)
    notes: list[str] = []
    remaining = list(options)
    if llama_factory.is_llama_factory(user):
        user, remaining = _translate(schema, user, remaining, lines, report, notes)
    tree = merge_layers(schema, user, remaining, lines, report)
    tree = modernise(tree, notes)
    config = _parse(schema, tree, "", report)
    if problems:
        ordered = sorted(problems, key=lambda problem: problem[0])
        raise ConfigError(str(path), [message for _, message in ordered])
    for note in notes:
        log.warning("%s: %s", path, note)
    resolve_paths(config, find_project(path))
    return config


def _translate(
    schema: type,
    user: Any,
    options: list[str],
    lines: dict[str, int],
    report: Report,
    notes: list[str],
) -> tuple[Any, list[str]]:
    """Translate a YAML file of LLaMA-Factory, with the options that name its keys.

    Returns:
        The translation, and the options that name keys of this project.
    """
    theirs = [option for option in options if "." not in option.partition("=")[0]]
    lines.update({option.partition("=")[0]: 0 for option in theirs})
    merged = OmegaConf.merge(user, OmegaConf.from_dotlist(theirs))
    plain = OmegaConf.to_container(merged, resolve=True)
    runs = getattr(get_type_hints(schema).get("run"), "kind", None) is not None
    tree, found = llama_factory.translate(plain, report, predict=not runs)  # type: ignore[arg-type]
    notes += found
    for key, target in llama_factory.DIRECT.items():
        if key in lines:
            lines[target] = lines[key]
    return OmegaConf.create(tree), [option for option in options if option not in theirs]


def from_tree(schema: type, tree: Any, where: str) -> Any:
    """Build a checked `schema` from a plain dict; the inverse of `to_tree`.

    Args:
        schema: A dataclass, or the base Config of a kind.
        tree: Result of `to_tree`, possibly written by an earlier version.
        where: Dotted path of the section, for messages.

    Raises:
        ConfigError: This version does not accept the tree; the message lists all reasons.
    """
    problems: list[str] = []
    config = _parse(schema, tree, where, lambda at, problem: problems.append(f"{at}: {problem}"))
    if problems:
        raise ConfigError(where, problems)
    return config


def to_tree(config: Any) -> Any:
    """Return the plain dict that `load` would turn into `config`, with all defaults explicit."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        tree = {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
        plugin: Any = type(config)
        kind = getattr(plugin, "kind", None)
        return tree if kind is None else {kind.key: kind.name_of(plugin.owner), **tree}
    if isinstance(config, Mapping):
        return {str(k): to_tree(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_tree(v) for v in config]
    return str(config) if isinstance(config, Path) else config


def to_yaml(config: Any) -> str:
    """Return the result of `to_tree` as YAML text."""
    text: str = OmegaConf.to_yaml(OmegaConf.create(to_tree(config)))
    return text


def _parse(schema: Any, node: Any, where: str, report: Report, label: str | None = None) -> Any:
    """Build one dataclass from one mapping; report its problems and return `INVALID` if any."""
    if node is INVALID:
        return INVALID
    if not isinstance(node, dict):
        report(where, f"expected a mapping, got {node!r}")
        return INVALID
    values = dict(node)
    if is_plugin_base(schema):
        schema = _take_plugin_schema(schema, values, where, report, label)
        if schema is INVALID:
            return INVALID
    if getattr(schema, "kind", None) is MODELS:
        values = model_keys.nest(schema, values)
    return _construct(schema, _check_fields(schema, values, where, report), where, report)


def _take_plugin_schema(
    schema: Any, values: dict, where: str, report: Report, label: str | None
) -> Any:
    """Return the Config class of the plug-in named in `values`, and remove the name there."""
    kind = schema.kind
    name = values.pop(kind.key, label if kind is BUILDERS else None)
    if name is None:
        name = getattr(schema, "default_name", None)
    if name is INVALID:
        return INVALID
    if name is None:
        report(where, f"missing '{kind.key}' (available: {', '.join(kind)})")
        return INVALID
    try:
        return kind.get(name).Config
    except KeyError as error:
        report(join(where, kind.key), error.args[0])
        return INVALID


def _check_fields(schema: Any, values: dict, where: str, report: Report) -> dict[str, Any]:
    """Return the checked values of a dataclass's fields; `INVALID` for those with a problem."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = get_type_hints(schema, include_extras=True)
    is_model = getattr(schema, "kind", None) is MODELS
    known = [*fields, *(model_keys.flat_keys(schema) if is_model else ())]
    for key in values:
        if key not in fields:
            report(join(where, key), f"unknown key{did_you_mean(key, known)}")
    parsed: dict[str, Any] = {}
    for name, field in fields.items():
        path = join(where, name)
        if name in values:
            parsed[name] = _check_value(hints[name], values[name], path, report)
        elif field.default is field.default_factory is dataclasses.MISSING:
            report(path, "missing")
            parsed[name] = INVALID
    return parsed


def _construct(schema: Any, parsed: dict[str, Any], where: str, report: Report) -> Any:
    """Build the dataclass; return `INVALID` if a field is invalid or `__post_init__` raises.

    Invalid fields are replaced by their defaults, so that problems with other fields are reported
    in the same pass. Problems that involve a replaced field are not reported.
    """
    invalid = {name for name, value in parsed.items() if _contains_invalid(value)}
    replaced = {f.name: _default(f) for f in dataclasses.fields(schema) if f.name in invalid}
    try:
        config = schema(**parsed | replaced)
    except SettingsError as error:
        _report_problems(error, invalid, where, report)
        return INVALID
    except (TypeError, ValueError) as error:  # raised by a plug-in without `Checks`
        if not invalid:
            report(where, str(error))
        return INVALID
    except Exception:
        if not invalid:
            raise
        return INVALID  # a check could not handle a replaced field
    return INVALID if invalid else config


def _report_problems(error: SettingsError, invalid: set[str], where: str, report: Report) -> None:
    for problem in error.problems:
        involved = {name.split(".")[0] for name in (problem.field, *problem.others)}
        if invalid.isdisjoint(involved):
            report(join(where, problem.field), problem.message)


def _default(field: dataclasses.Field) -> Any:
    """Return the default of a field, or None if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _check_value(hint: Any, value: Any, where: str, report: Report) -> Any:
    """Convert `value` to the type `hint`; if it does not fit, report that and return `INVALID`."""
    if value is INVALID:
        return INVALID
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _check_choice(args, value, where, report)
    if origin in (Union, types.UnionType) and type(None) in args:
        return None if value is None else _check_value(_without_none(args), value, where, report)
    if _is_dataclass_type(hint):
        return _parse(hint, value, where, report)
    if origin in (dict, list) and isinstance(value, origin) and _contains_dataclass(args[-1]):
        return _check_items(args, value, where, report)
    return INVALID if _contains_invalid(value) else _check_plain(hint, value, where, report)


def _without_none(args: tuple) -> Any:
    return Union[tuple(a for a in args if a is not type(None))]  # noqa: UP007


def _check_items(args: tuple, value: dict | list, where: str, report: Report) -> dict | list:
    """Check a list of dataclasses, or a map to dataclasses, whose keys may be restricted."""
    if isinstance(value, list):
        return [_check_value(args[0], v, join(where, i), report) for i, v in enumerate(value)]
    allowed = get_args(args[0]) if get_origin(args[0]) is Literal else None
    checked = {}
    for key, item in value.items():
        path = join(where, key)
        if allowed is not None and key not in allowed:
            report(path, f"unknown key{did_you_mean(key, allowed)}")
            continue
        checked[key] = _check_item(args[1], item, path, report, str(key))
    return checked


def _check_item(hint: Any, value: Any, where: str, report: Report, label: str) -> Any:
    if _is_dataclass_type(hint):
        return _parse(hint, {} if value is None else value, where, report, label)
    return _check_value(hint, value, where, report)


def _check_choice(args: tuple, value: Any, where: str, report: Report) -> Any:
    checked = _check_value(args[0], value, where, report)
    for meta in args[1:]:
        if isinstance(meta, Choice) and isinstance(checked, str) and checked not in meta.names:
            hint = did_you_mean(checked, meta.names)
            report(where, f"unknown {meta.names.kind} '{checked}'{hint}")
            return INVALID
    return checked


def _check_plain(hint: Any, value: Any, where: str, report: Report) -> Any:
    """Validate a value without dataclasses with pydantic; a bool is not accepted as a number."""
    if isinstance(value, bool) and hint in (int, float):
        report(where, f"{value} is not a number")
        return INVALID
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        if get_origin(hint) in (Union, types.UnionType):
            messages = dict.fromkeys(detail["msg"] for detail in error.errors())
            report(where, f"{'; or: '.join(messages)}; got {value!r}")
            return INVALID
        for detail in error.errors():
            location = ".".join(str(p) for p in detail["loc"])
            path = join(where, location) if detail["loc"] else where
            report(path, f"{detail['msg']}, got {detail['input']!r}")
        return INVALID


def _is_dataclass_type(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _contains_dataclass(hint: Any) -> bool:
    return any(_is_dataclass_type(h) for h in (hint, *get_args(hint)))


def _contains_invalid(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_contains_invalid(v) for v in value.values())
    if isinstance(value, list):
        return any(_contains_invalid(v) for v in value)
    return value is INVALID


def _as_given(where: str, lines: Mapping[str, int]) -> str:
    """Return the spelling of a path that the user wrote, if the path has several spellings."""
    given = (where, *model_keys.other_spellings(where))
    for path in given:
        if any(line == path or line.startswith(f"{path}.") for line in lines):
            return path
    return where


def _ancestors(where: str) -> list[str]:
    parts = where.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
