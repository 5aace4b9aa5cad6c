"""YAML -> typed, checked dataclasses. Nothing downstream of this file sees a dict or a default.

Precedence, once: dataclass default < preset < user YAML < ``--options``. Options are applied before
any value is read, so they may change the preset. Every problem is collected and reported with its
line.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from xraygpt.common.checks import SettingsError
from xraygpt.common.errors import ConfigError, InputError
from xraygpt.common.legacy import modernise
from xraygpt.common.registry import BUILDERS, MODELS, Plugin, Registry, did_you_mean

log = logging.getLogger(__name__)

PRESETS = Path(__file__).parent.parent / "configs"
_BAD: Any = object()  # stands for a value whose problem is already reported
Report = Callable[[str, str], None]  # (dotted path, what is wrong)


class Choice:
    """Metadata of an `Annotated[str, Choice(REGISTRY)]` field: must be a registered name."""

    def __init__(self, names: Registry) -> None:
        self.names = names


def load(schema: type, path: str | Path, options: Iterable[str] = ()) -> Any:
    """Read the YAML at `path`, apply ``key.path=value`` options, return a checked `schema`.

    Args:
        schema: A dataclass whose fields are the roots a YAML may have.
        path: The YAML file.
        options: Command line overrides, each ``dotted.key=value`` with a YAML value.

    Raises:
        InputError: The file cannot be read.
        ConfigError: With *all* unknown keys, bad values, missing fields and broken interpolations.
    """
    path = Path(path)
    found: list[tuple[int, str]] = []  # (line, message); line 0 is the command line
    lines: dict[str, int] = {}

    def report(where: str, what: str) -> None:
        line = next((lines[k] for k in _ancestors(where) if k in lines), 1)
        place = f"line {line}" if line else "--options"
        message = ": ".join(filter(None, (place, where, what)))
        if (line, message) not in found:
            found.append((line, message))

    user = _read(path, lines, report)
    tree = _layers(schema, user, list(options), lines, report)
    notes: list[str] = []
    tree = modernise(tree, notes)
    config = _parse(schema, tree, "", report)
    if found:
        raise ConfigError(str(path), [message for _, message in sorted(found, key=lambda f: f[0])])
    for note in notes:
        log.warning("%s: %s", path, note)
    return config


def from_tree(schema: type, tree: Any, where: str) -> Any:
    """What `to_tree` made, as a checked `schema` again.

    Args:
        schema: A dataclass, or the base Config of a kind.
        tree: Of an earlier run, perhaps of an earlier version.
        where: Dotted path of the section, for messages.

    Raises:
        ConfigError: With everything this version does not know.
    """
    found: list[str] = []
    config = _parse(schema, tree, where, lambda at, what: found.append(f"{at}: {what}"))
    if found:
        raise ConfigError(where, found)
    return config


def to_tree(config: Any) -> Any:
    """The plain dict that `load` would turn into `config`: all defaults and names spelt out."""
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
    """`to_tree` as YAML text."""
    text: str = OmegaConf.to_yaml(OmegaConf.create(to_tree(config)))
    return text


# --- reading -----------------------------------------------------------------------------------


def _read(path: Path, lines: dict[str, int], report: Report) -> Any:
    """The user's YAML as OmegaConf, every key's line in `lines`, duplicate keys reported."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"cannot read the configuration {path}: {reason}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        what = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(str(path), [f"line {line}: YAML syntax: {what}"]) from None
    if node is None:
        return OmegaConf.create({})
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(str(path), ["line 1: expected the roots model, datasets and run"])
    _index(node, "", lines, report)
    try:
        return OmegaConf.create(yaml.serialize(node, Dumper=yaml.SafeDumper))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        what = " ".join(str(error).split())[:200]
        raise ConfigError(str(path), [f"cannot be read: {what}"]) from None
    except RecursionError:
        raise ConfigError(str(path), ["an alias (*name) stands inside what it names"]) from None


def _index(node: yaml.Node, where: str, lines: dict[str, int], report: Report) -> None:
    """Fill `lines`; report a key given twice and keep its first value."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[_join(where, i)] = item.start_mark.line + 1
            _index(item, _join(where, i), lines, report)
    if not isinstance(node, yaml.MappingNode):
        return
    kept, again = [], []
    for key, value in node.value:
        here, line = _join(where, key.value), key.start_mark.line + 1
        if here in lines:
            again.append((here, line))
            continue
        lines[here] = line
        kept.append((key, value))
        _index(value, here, lines, report)
    for here, line in again:
        first, lines[here] = lines[here], line
        report(here, f"duplicate key, first given in line {first}")
        lines[here] = first
    node.value = kept


def _layers(
    schema: type, user: Any, options: list[str], lines: dict[str, int], report: Report
) -> dict[str, Any]:
    """Preset < user < options, resolved into a plain dict."""
    given: Any = OmegaConf.create({})
    for item in options:
        key, sep, _ = item.partition("=")
        lines[key] = 0
        if not sep:
            report(key, "expected key.path=value")
            continue
        try:
            given = OmegaConf.merge(given, OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            report(key, str(error).splitlines()[0])
    try:
        merged: Any = OmegaConf.merge(user, given)
    except OmegaConfBaseException as error:
        report("", str(error).splitlines()[0])
        merged, given = user, OmegaConf.create({})
    _import_plugins(_get(merged, "imports"), report)
    names = list(_plugin_fields(schema, merged, ""))
    merged = OmegaConf.merge(_spell_out(user, names), _spell_out(given, names))
    merged = OmegaConf.merge(_presets(merged, report), merged)
    tree: dict[str, Any] = _plain(merged, "", report)
    return tree


def _plugin_fields(schema: Any, config: Any, where: str) -> Iterator[tuple[str, str]]:
    """Where a plug-in's settings stand in `config`, with the key that names it: `run.task`, `name`.

    Fields of `schema` and of the dataclasses in it; maps, lists and optional fields are passed by.
    """
    for name, hint in get_type_hints(schema).items():
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            continue
        here, inner = _join(where, name), hint
        if _is_kind(hint):
            kind = cast(Any, hint).kind
            yield here, kind.key
            chosen = _get(config, f"{here}.{kind.key}") or getattr(hint, "default_name", None)
            inner = kind.get(chosen).Config if chosen in list(kind) else hint
        if isinstance(_get(config, here), DictConfig):
            yield from _plugin_fields(inner, config, here)


def _spell_out(config: Any, names: list[tuple[str, str]]) -> Any:
    """`run.task: vqa` is short for `run.task: {name: vqa}`, so that options can be laid over it."""
    for where, key in names:
        value = _get(config, where)
        if isinstance(value, str):
            OmegaConf.update(config, where, {key: value}, merge=False)
    return config


def _get(config: Any, key: str) -> Any:
    """`OmegaConf.select` that answers None instead of raising on a broken interpolation."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def _import_plugins(modules: Any, report: Report) -> None:
    for i, module in enumerate(modules if isinstance(modules, ListConfig) else []):
        try:
            importlib.import_module(str(module))
        except ImportError as error:
            report(f"imports.{i}", f"cannot import '{module}': {error}")


def _presets(config: Any, report: Report) -> Any:
    """The preset of `model.arch` + `model.model_type` and each builder's defaults."""
    tree: Any = OmegaConf.create({})
    arch, model_type = _get(config, "model.arch"), _get(config, "model.model_type")
    if model_type is not None and arch in list(MODELS):
        folder = PRESETS / "models" / MODELS.name_of(MODELS.get(arch))
        names = sorted(p.stem for p in folder.glob("*.yaml"))
        if str(model_type) in names:
            tree = OmegaConf.merge(tree, OmegaConf.load(folder / f"{model_type}.yaml"))
        else:
            hint = did_you_mean(model_type, names)
            report("model.model_type", f"no preset '{model_type}' of {arch}{hint}")
    datasets = _get(config, "datasets")
    for label in datasets if isinstance(datasets, DictConfig) else []:
        builder = _get(config, f"datasets.{label}.builder") or label
        path = PRESETS / "datasets" / str(builder) / "defaults.yaml"
        if path.is_file():
            tree = OmegaConf.merge(tree, {"datasets": {label: OmegaConf.load(path)}})
    return tree


def _plain(node: Any, where: str, report: Report) -> Any:
    """OmegaConf -> dicts and lists; `???` and interpolations that fail are reported one by one."""
    if isinstance(node, (DictConfig, ListConfig)):
        if node._is_none():
            return None
        keys = list(node) if isinstance(node, DictConfig) else range(len(node))
        items = {key: _item(node, key, _join(where, key), report) for key in keys}
        return items if isinstance(node, DictConfig) else list(items.values())
    return node


def _item(node: Any, key: Any, where: str, report: Report) -> Any:
    if OmegaConf.is_missing(node, key):
        report(where, "needs a value ('???')")
        return _BAD
    try:
        value = node[key]
        return _plain(value, where, report)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        report(
            where, first.removeprefix("KeyError raised while resolving interpolation: ").strip('"')
        )
    except RecursionError:
        report(where, "this interpolation refers to itself")
    return _BAD


# --- checking ----------------------------------------------------------------------------------


def _parse(schema: Any, node: Any, where: str, report: Report, label: str | None = None) -> Any:
    """One dataclass from one mapping; reports each problem and goes on to the next field."""
    if node is _BAD:
        return _BAD
    if not isinstance(node, dict):
        report(where, f"expected a mapping, got {node!r}")
        return _BAD
    values = dict(node)
    if _is_kind(schema):
        schema = _pick(schema, values, where, report, label)
        if schema is _BAD:
            return _BAD
    return _built(schema, _fields(schema, values, where, report), where, report)


def _built(schema: Any, parsed: dict[str, Any], where: str, report: Report) -> Any:
    """The dataclass of checked fields, or `_BAD` if one is broken or its `__post_init__` raises.

    Where fields are broken already, their defaults stand in, so that what is wrong with the others
    is reported in the same go; whatever a stand-in had a part in is not.
    """
    broken = {name for name, value in parsed.items() if _spoilt(value)}
    stand_ins = {f.name: _default(f) for f in dataclasses.fields(schema) if f.name in broken}
    try:
        made = schema(**parsed | stand_ins)
    except SettingsError as error:
        for one in error.problems:
            if broken.isdisjoint((one.field.split(".")[0], *one.others)):
                report(_join(where, one.field), one.message)
        return _BAD
    except (TypeError, ValueError) as error:  # of a plug-in that raises by itself
        if not broken:
            report(where, str(error))
        return _BAD
    except Exception:
        if not broken:
            raise
        return _BAD  # a stand-in was not what a check expects
    return _BAD if broken else made


def _default(field: dataclasses.Field) -> Any:
    """The default of a field; None if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _is_kind(schema: Any) -> bool:
    """Whether `schema` is the base Config of a kind: the YAML says which plug-in's it becomes."""
    plugin = issubclass(schema, Plugin.Config)
    return plugin and schema.kind is not None and schema.owner is None


def _fields(schema: Any, values: dict, where: str, report: Report) -> dict[str, Any]:
    """Every field of a dataclass, checked; what is wrong is `_BAD`."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = get_type_hints(schema, include_extras=True)
    for key in values:
        if key not in fields:
            report(_join(where, key), f"unknown key{did_you_mean(key, fields)}")
    parsed: dict[str, Any] = {}
    for name, f in fields.items():
        here = _join(where, name)
        if name in values:
            parsed[name] = _value(hints[name], values[name], here, report)
        elif f.default is f.default_factory is dataclasses.MISSING:
            report(here, "missing")
            parsed[name] = _BAD
    return parsed


def _pick(schema: Any, values: dict, where: str, report: Report, label: str | None) -> Any:
    """The Config class of the plug-in that `values` names; takes the name out of `values`."""
    kind = schema.kind
    name = values.pop(kind.key, label if kind is BUILDERS else None)
    if name is None:
        name = getattr(schema, "default_name", None)
    if name is _BAD:
        return _BAD
    if name is None:
        report(where, f"missing '{kind.key}' (have: {', '.join(kind)})")
        return _BAD
    try:
        return kind.get(name).Config
    except KeyError as error:
        report(_join(where, kind.key), error.args[0])
        return _BAD


def _value(hint: Any, value: Any, where: str, report: Report) -> Any:
    """`value` checked against and converted to `hint`, or `_BAD` with a report."""
    if value is _BAD:
        return _BAD
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _choice(args, value, where, report)
    if origin in (Union, types.UnionType) and type(None) in args:
        rest = tuple(a for a in args if a is not type(None))
        return None if value is None else _value(Union[rest], value, where, report)  # noqa: UP007
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _parse(hint, value, where, report)
    if origin is dict and isinstance(value, dict) and _holds_dataclass(args[1]):
        return _entries(args, value, where, report)
    if origin is list and isinstance(value, list) and _holds_dataclass(args[0]):
        return [_value(args[0], v, _join(where, i), report) for i, v in enumerate(value)]
    return _BAD if _spoilt(value) else _leaf(hint, value, where, report)


def _entries(args: tuple, value: dict, where: str, report: Report) -> dict:
    """A map to dataclasses; its keys are checked where only some are allowed."""
    allowed = get_args(args[0]) if get_origin(args[0]) is Literal else None
    checked = {}
    for key, one in value.items():
        here = _join(where, key)
        if allowed is not None and key not in allowed:
            report(here, f"unknown key{did_you_mean(key, allowed)}")
            continue
        checked[key] = _entry(args[1], one, here, report, str(key))
    return checked


def _entry(hint: Any, value: Any, where: str, report: Report, label: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _parse(hint, {} if value is None else value, where, report, label)
    return _value(hint, value, where, report)


def _choice(args: tuple, value: Any, where: str, report: Report) -> Any:
    checked = _value(args[0], value, where, report)
    for meta in args[1:]:
        if isinstance(meta, Choice) and isinstance(checked, str) and checked not in meta.names:
            hint = did_you_mean(checked, meta.names)
            report(where, f"unknown {meta.names.kind} '{checked}'{hint}")
            return _BAD
    return checked


def _leaf(hint: Any, value: Any, where: str, report: Report) -> Any:
    """A value without dataclasses inside, checked by pydantic; a bool is not taken for a number."""
    if isinstance(value, bool) and hint in (int, float):
        report(where, f"{value} is not a number")
        return _BAD
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        if get_origin(hint) in (Union, types.UnionType):
            said = dict.fromkeys(one["msg"] for one in error.errors())
            report(where, f"{'; or: '.join(said)}; got {value!r}")
            return _BAD
        for one in error.errors():
            place = _join(where, ".".join(str(p) for p in one["loc"])) if one["loc"] else where
            report(place, f"{one['msg']}, got {one['input']!r}")
        return _BAD


def _holds_dataclass(hint: Any) -> bool:
    inner = [hint, *get_args(hint)]
    return any(isinstance(h, type) and dataclasses.is_dataclass(h) for h in inner)


def _spoilt(value: Any) -> bool:
    """Whether a reported problem stands somewhere inside `value`."""
    if isinstance(value, dict):
        return any(_spoilt(v) for v in value.values())
    if isinstance(value, list):
        return any(_spoilt(v) for v in value)
    return value is _BAD


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _ancestors(where: str) -> list[str]:
    parts = where.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
