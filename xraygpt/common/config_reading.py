"""Reads a configuration: merges the YAML file, presets and options into one plain tree.

Precedence: preset < user YAML < ``--options``. Options are applied before any value is read, so
that they may change the preset.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xraygpt.common import model_keys
from xraygpt.common.errors import ConfigError, InputError
from xraygpt.common.registry import MODELS, Plugin, did_you_mean

PRESETS = Path(__file__).parent.parent / "configs"
INVALID: Any = object()  # replaces a value whose problem has already been reported
Report = Callable[[str, str], None]  # (dotted path, problem)


def read_yaml(path: Path, lines: dict[str, int], report: Report) -> Any:
    """Read the user's YAML file.

    Args:
        path: The YAML file.
        lines: Dict to which the line number of each dotted path is added.
        report: Called for duplicate keys.

    Returns:
        The content as an OmegaConf container.

    Raises:
        InputError: The file cannot be read.
        ConfigError: The file is not valid YAML, or does not contain a mapping.
    """
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
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(str(path), [f"line {line}: YAML syntax: {problem}"]) from None
    if node is None:
        return OmegaConf.create({})
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(str(path), ["line 1: expected the sections model, datasets and run"])
    _index_lines(node, "", lines, report)
    try:
        return OmegaConf.create(yaml.serialize(node, Dumper=yaml.SafeDumper))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(str(path), [f"cannot be read: {problem}"]) from None
    except RecursionError:
        raise ConfigError(str(path), ["an alias (*name) refers to a node around it"]) from None


def _index_lines(node: yaml.Node, where: str, lines: dict[str, int], report: Report) -> None:
    """Fill `lines`, report duplicate keys and keep only the first value of each."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[join(where, i)] = item.start_mark.line + 1
            _index_lines(item, join(where, i), lines, report)
    if not isinstance(node, yaml.MappingNode):
        return
    unique, duplicates = [], []
    for key, value in node.value:
        key_path, line = join(where, key.value), key.start_mark.line + 1
        if key_path in lines:
            duplicates.append((key_path, line))
            continue
        lines[key_path] = line
        unique.append((key, value))
        _index_lines(value, key_path, lines, report)
    for key_path, line in duplicates:
        first, lines[key_path] = lines[key_path], line
        report(key_path, f"duplicate key, first given in line {first}")
        lines[key_path] = first
    node.value = unique


def merge_layers(
    schema: type, user: Any, options: list[str], lines: dict[str, int], report: Report
) -> dict[str, Any]:
    """Merge the preset, the user's YAML file and the options.

    Args:
        schema: The root dataclass.
        user: Result of `read_yaml`.
        options: ``key.path=value`` overrides.
        lines: Line numbers by dotted path; each option is added with line 0.
        report: Called for each problem.

    Returns:
        A plain dict with interpolations resolved; values with problems are `INVALID`.
    """
    overrides: Any = OmegaConf.create({})
    for item in options:
        key, separator, _ = item.partition("=")
        lines[key] = 0
        if not separator:
            report(key, "expected key.path=value")
            continue
        try:
            overrides = OmegaConf.merge(overrides, OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            report(key, str(error).splitlines()[0])
    try:
        merged: Any = OmegaConf.merge(user, overrides)
    except OmegaConfBaseException as error:
        report("", str(error).splitlines()[0])
        merged, overrides = user, OmegaConf.create({})
    _import_plugins(_select(merged, "imports"), report)
    fields = list(_plugin_fields(schema, merged, ""))
    user, overrides = _expand_names(user, fields), _expand_names(overrides, fields)
    presets = _presets(OmegaConf.merge(user, overrides), report)
    layers = [_flatten_model_keys(layer, merged, report) for layer in (presets, user, overrides)]
    merged = OmegaConf.merge(*layers)
    tree: dict[str, Any] = _to_plain(merged, "", report)
    return tree


def _plugin_fields(schema: Any, config: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each plug-in section in `config` and its naming key: `run.task`, `name`.

    Covers fields of `schema` and of nested dataclasses, but not maps, lists and optional fields.
    """
    for name, hint in get_type_hints(schema).items():
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            continue
        path, inner = join(where, name), hint
        if is_plugin_base(hint):
            kind = cast(Any, hint).kind
            yield path, kind.key
            plugin = _select(config, f"{path}.{kind.key}") or getattr(hint, "default_name", None)
            inner = kind.get(plugin).Config if plugin in list(kind) else hint
        if isinstance(_select(config, path), DictConfig):
            yield from _plugin_fields(inner, config, path)


def is_plugin_base(schema: Any) -> bool:
    """Check whether `schema` is the base Config of a kind, to be replaced by a plug-in's Config."""
    is_plugin = issubclass(schema, Plugin.Config)
    return is_plugin and schema.kind is not None and schema.owner is None


def _expand_names(config: Any, fields: list[tuple[str, str]]) -> Any:
    """Replace `run.task: vqa` by `run.task: {name: vqa}`, so that options can be merged into it."""
    for path, key in fields:
        value = _select(config, path)
        if isinstance(value, str):
            OmegaConf.update(config, path, {key: value}, merge=False)
    return config


def _model_sections(config: Any) -> list[str]:
    """Return the paths of the models: `model`, and each entry of `models` with a valid name."""
    models = _select(config, "models")
    names = list(models) if isinstance(models, DictConfig) and not models._is_none() else []
    return ["model", *(f"models.{name}" for name in names if _is_name(name))]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"[A-Za-z_][\w-]*", name))


def _flatten_model_keys(layer: Any, merged: Any, report: Report) -> Any:
    """Return a layer in which all model keys have the flat spelling; see `model_keys`."""
    for where in _model_sections(merged):
        arch, section = _select(merged, f"{where}.arch"), _select(layer, where)
        if section is None or arch is None or arch not in list(MODELS):
            continue
        alone = OmegaConf.create({"model": section})
        flattened, twice = model_keys.flatten(MODELS.get(arch).Config, alone)
        for flat in twice:
            nested = model_keys.MODEL_KEYS[flat]
            report(f"{where}.{flat}", f"also given as {where}.{nested}; remove one")
        layer = OmegaConf.merge(layer, {})  # a copy
        OmegaConf.update(layer, where, flattened["model"], merge=False)
    return layer


def _select(config: Any, key: str) -> Any:
    """Call `OmegaConf.select`, but return None instead of raising on a broken interpolation."""
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
    """Load the preset for the `arch` and `model_type` of models, and each builder's defaults."""
    tree: Any = OmegaConf.create({})
    sections, models = _model_sections(config), _select(config, "models")
    for name in models if isinstance(models, DictConfig) and not models._is_none() else ():
        if not _is_name(name):
            letters = "a name has letters, digits, _ and -, and starts with a letter"
            report("models", f"'{name!s}' cannot be the name of a model: {letters}")
    for where in sections[1:]:  # keeps their order
        tree = OmegaConf.merge(tree, _at(where, {}))
    for where in sections:
        arch, model_type = _select(config, f"{where}.arch"), _select(config, f"{where}.model_type")
        if model_type is None or arch not in list(MODELS):
            continue
        folder = PRESETS / "models" / MODELS.name_of(MODELS.get(arch))
        names = sorted(p.stem for p in folder.glob("*.yaml"))
        if str(model_type) in names:
            preset = OmegaConf.load(folder / f"{model_type}.yaml")
            if where != "model":
                preset = _at(where, _select(preset, "model"))
            tree = OmegaConf.merge(tree, preset)
        else:
            hint = did_you_mean(model_type, names)
            report(f"{where}.model_type", f"{arch} has no preset '{model_type}'{hint}")
    datasets = _select(config, "datasets")
    for label in datasets if isinstance(datasets, DictConfig) else []:
        builder = _select(config, f"datasets.{label}.builder") or label
        path = PRESETS / "datasets" / str(builder) / "defaults.yaml"
        if path.is_file():
            tree = OmegaConf.merge(tree, {"datasets": {label: OmegaConf.load(path)}})
    return tree


def _at(where: str, section: Any) -> Any:
    """Return a tree with a section at ``models.<name>``."""
    outer, _, name = where.partition(".")
    return OmegaConf.create({outer: {name: section}})


def _to_plain(node: Any, where: str, report: Report) -> Any:
    """Convert to dicts and lists; report each `???` and each interpolation that fails."""
    if isinstance(node, (DictConfig, ListConfig)):
        if node._is_none():
            return None
        keys = list(node) if isinstance(node, DictConfig) else range(len(node))
        items = {key: _plain_item(node, key, join(where, key), report) for key in keys}
        return items if isinstance(node, DictConfig) else list(items.values())
    return node


def _plain_item(node: Any, key: Any, where: str, report: Report) -> Any:
    if OmegaConf.is_missing(node, key):
        report(where, "needs a value ('???')")
        return INVALID
    try:
        value = node[key]
        return _to_plain(value, where, report)
    except OmegaConfBaseException as error:
        first_line = str(error).splitlines()[0]
        prefix = "KeyError raised while resolving interpolation: "
        report(where, first_line.removeprefix(prefix).strip('"'))
    except RecursionError:
        report(where, "this interpolation refers to itself")
    return INVALID


def join(where: str, key: Any) -> str:
    """Return the dotted path of `key` below the dotted path `where`, which may be empty."""
    return f"{where}.{key}" if where else str(key)
