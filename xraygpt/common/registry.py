"""Named plug-ins: one `Registry` per kind, also available under LAVIS's function names.

A plug-in is a class with its own `Config` dataclass, whose fields are the valid YAML keys with
their defaults. `imports: [my_pkg.my_module]` at the root of a YAML file loads plug-ins from
other packages.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, cast

from xraygpt.common.requirements import Missing, missing_paths


class Plugin:
    """A class that a YAML file can name, built from its `Config` and runtime keyword arguments."""

    @dataclass(kw_only=True)
    class Config:
        """The fields are the valid YAML keys, with their defaults."""

        owner: ClassVar[type | None] = None  # the plug-in this Config belongs to
        kind: ClassVar[Registry | None] = None  # set on the base Config of a kind

        def build(self, **runtime: Any) -> Any:
            """Build the plug-in; `runtime` contains objects that a YAML file cannot express."""
            assert self.owner is not None, "only a registered plug-in's Config can build"
            return self.owner(self, **runtime)

        def missing(self, where: str) -> list[Missing]:
            """List what the plug-in needs but this machine lacks, with the command that gets it.

            Commands call this before they build anything. The default lists every path among the
            fields, also in nested sections, that is set but does not exist. It must not load files.

            Args:
                where: Dotted path of this section in the YAML file.
            """
            return missing_paths(self, where)


class Registry:
    """Plug-ins of one kind.

    Args:
        kind: Name of an entry in messages, e.g. ``"model"``.
        key: The YAML key that selects an entry, e.g. ``"arch"``.
        package: Package that is imported on the first lookup, so that its classes register.
        settings: Whether entries have a `Config`; otherwise the YAML file only names them.
    """

    def __init__(self, kind: str, *, key: str, package: str, settings: bool = True) -> None:
        self.kind, self.key, self._package = kind, key, package
        self._settings = settings
        self._entries: dict[str, Any] = {}

    def register(self, name: str, *aliases: str) -> Callable[[Any], Any]:
        """Return a class decorator that makes a class available to YAML as `name` and `aliases`.

        A name with a placeholder in angle brackets, ``timm/<name>``, matches all names with that
        prefix that are not registered themselves; the longest matching prefix is used.

        Raises:
            ValueError: A name is already registered for another class.
            TypeError: The class does not define its own `@dataclass Config`.
        """

        def add(entry: Any) -> Any:
            if self._settings and isinstance(entry, type):
                config = vars(entry).get("Config")
                if not is_dataclass(config):
                    raise TypeError(
                        f"{self.kind} '{name}': {entry.__name__} needs its own @dataclass Config"
                    )
                cast(Any, config).owner = entry
            for alias in (name, *aliases):
                existing = self._registered(alias)
                if existing is not None and existing is not entry:
                    owner = f"{existing.__module__}.{existing.__qualname__}"
                    raise ValueError(f"{self.kind} '{alias}' is already registered for {owner}")
                self._entries[alias] = entry
            return entry

        return add

    def get(self, name: str) -> Any:
        """Return the entry registered as `name`, or raise a `KeyError` that suggests names."""
        return self.match(name)[0]

    def match(self, name: str) -> tuple[Any, str]:
        """Return the entry for `name` and the text its placeholder matched, empty without one."""
        names = list(self)
        if name in names:
            return self._entries[name], ""
        prefixes = [p for p in map(_prefix, names) if p is not None and str(name).startswith(p)]
        if not prefixes:
            raise KeyError(f"unknown {self.kind} '{name}'{did_you_mean(name, names)}")
        longest = max(prefixes, key=len)
        return self._registered(f"{longest}<"), str(name).removeprefix(longest)

    def _registered(self, name: str) -> Any:
        """Return the entry with this name, or with the same prefix and another placeholder."""
        prefix = _prefix(name)
        same_prefix = (
            e for k, e in self._entries.items() if prefix is not None and _prefix(k) == prefix
        )
        return self._entries.get(name) or next(same_prefix, None)

    def __contains__(self, name: object) -> bool:
        try:
            self.match(cast(str, name))
        except KeyError:
            return False
        return True

    def name_of(self, entry: Any) -> str:
        """Return the first name under which `entry` was registered."""
        return next(name for name, value in self._entries.items() if value is entry)

    def __iter__(self) -> Iterator[str]:
        importlib.import_module(self._package)
        return iter(sorted(self._entries))


def _prefix(name: str) -> str | None:
    """Return the part of ``timm/<name>`` before the placeholder; None if there is none."""
    prefix, placeholder, _ = name.partition("<")
    return prefix if placeholder else None


def did_you_mean(word: Any, options: Iterable[str]) -> str:
    """Return a suffix for messages: ``"; did you mean 'x'?"``, or all names if none is similar."""
    names = list(options)
    similar = difflib.get_close_matches(str(word), names, n=1)
    if similar:
        return f"; did you mean '{similar[0]}'?"
    return f" (available: {', '.join(names)})" if names else ""


MODELS = Registry("model", key="arch", package="xraygpt.models")
PROCESSORS = Registry("processor", key="name", package="xraygpt.processors.builtin")
BUILDERS = Registry("dataset builder", key="builder", package="xraygpt.datasets")
TASKS = Registry("task", key="name", package="xraygpt.tasks")
RUNNERS = Registry("runner", key="runner", package="xraygpt.runners")
VOCABULARIES = Registry("vocabulary", key="vocabulary", package="xraygpt.vocabulary")
OPTIMIZERS = Registry("optimizer", key="name", package="xraygpt.runners.optimizers")
ANALYSES = Registry("analysis", key="analysis", package="xraygpt.cardiac.analysis")
SEGMENTERS = Registry("segmenter", key="name", package="xraygpt.segmentation.builtin")
ENCODERS = Registry("encoder", key="vit_model", package="xraygpt.models", settings=False)
LR_SCHEDULERS = Registry("lr scheduler", key="lr_sched", package="xraygpt.runners.schedules")
COLLECTIONS = Registry(
    "collection of images", key="collection", package="xraygpt.instructions.collections"
)


class _LavisSpelling:
    """`registry.register_model("x")`, `registry.get_model_class("x")` and so on for every kind."""

    register_model = staticmethod(MODELS.register)
    register_processor = staticmethod(PROCESSORS.register)
    register_builder = staticmethod(BUILDERS.register)
    register_task = staticmethod(TASKS.register)
    register_runner = staticmethod(RUNNERS.register)
    register_vocabulary = staticmethod(VOCABULARIES.register)
    register_optimizer = staticmethod(OPTIMIZERS.register)
    register_encoder = staticmethod(ENCODERS.register)
    register_lr_scheduler = staticmethod(LR_SCHEDULERS.register)
    register_analysis = staticmethod(ANALYSES.register)
    register_segmenter = staticmethod(SEGMENTERS.register)

    get_model_class = staticmethod(MODELS.get)
    get_processor_class = staticmethod(PROCESSORS.get)
    get_builder_class = staticmethod(BUILDERS.get)
    get_task_class = staticmethod(TASKS.get)
    get_runner_class = staticmethod(RUNNERS.get)
    get_vocabulary_class = staticmethod(VOCABULARIES.get)
    get_optimizer_class = staticmethod(OPTIMIZERS.get)
    get_encoder_class = staticmethod(ENCODERS.get)
    get_lr_scheduler_class = staticmethod(LR_SCHEDULERS.get)
    get_analysis_class = staticmethod(ANALYSES.get)
    get_segmenter_class = staticmethod(SEGMENTERS.get)

    @staticmethod
    def list_models() -> list[str]:
        """Return the valid values of `model.arch`."""
        return list(MODELS)

    @staticmethod
    def list_processors() -> list[str]:
        """Return the valid values of a processor's `name` key."""
        return list(PROCESSORS)

    @staticmethod
    def list_datasets() -> list[str]:
        """Return the valid values of `datasets.<label>.builder`."""
        return list(BUILDERS)

    @staticmethod
    def list_tasks() -> list[str]:
        """Return the valid values of `run.task`."""
        return list(TASKS)

    @staticmethod
    def list_runners() -> list[str]:
        """Return the valid values of `run.runner`."""
        return list(RUNNERS)

    @staticmethod
    def list_vocabularies() -> list[str]:
        """Return the valid values of `vocabulary`."""
        return list(VOCABULARIES)

    @staticmethod
    def list_optimizers() -> list[str]:
        """Return the valid values of `run.optimizer`."""
        return list(OPTIMIZERS)

    @staticmethod
    def list_encoders() -> list[str]:
        """Return the valid values of `model.vit_model`; ``<…>`` is a placeholder."""
        return list(ENCODERS)

    @staticmethod
    def list_lr_schedulers() -> list[str]:
        """Return the valid values of `run.lr_sched`."""
        return list(LR_SCHEDULERS)

    @staticmethod
    def list_analyses() -> list[str]:
        """Return the valid values of `run.analysis`."""
        return list(ANALYSES)

    @staticmethod
    def list_segmenters() -> list[str]:
        """Return the valid values of a segmenter's `name` key."""
        return list(SEGMENTERS)


registry = _LavisSpelling()
