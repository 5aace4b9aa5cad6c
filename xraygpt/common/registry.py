"""Named plug-ins: one `Registry` per kind inside, the LAVIS spelling outside.

A plug-in is a class with a `Config` dataclass of its own: the fields are the legal YAML keys, their
defaults the only defaults. `imports: [my_pkg.my_module]` at the root of a YAML brings in plug-ins
from elsewhere; nothing in the package needs to know them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, cast


class Plugin:
    """A class that YAML can name. It is built from its own `Config` and live keyword arguments."""

    @dataclass(kw_only=True)
    class Config:
        """Fields are the only legal YAML keys; their defaults are the only defaults."""

        owner: ClassVar[type | None] = None  # the plug-in this Config belongs to
        kind: ClassVar[Registry | None] = None  # set on the base Config of a kind

        def build(self, **runtime: Any) -> Any:
            """Build the plug-in; `runtime` holds live objects that YAML cannot spell."""
            assert self.owner is not None, "only a registered plug-in's Config can build"
            return self.owner(self, **runtime)


class Registry:
    """Plug-ins of one kind.

    Args:
        kind: What messages call one entry, e.g. ``"model"``.
        key: The YAML key that picks an entry, e.g. ``"arch"``.
        package: Imported once, on the first lookup, so that its classes register themselves.
        settings: Whether entries have a `Config`; without, a YAML gives the name alone.
    """

    def __init__(self, kind: str, *, key: str, package: str, settings: bool = True) -> None:
        self.kind, self.key, self._package = kind, key, package
        self._settings = settings
        self._entries: dict[str, Any] = {}

    def register(self, name: str, *aliases: str) -> Callable[[Any], Any]:
        """Class decorator: make the class available to YAML as `name` and `aliases`.

        A name with a placeholder in angle brackets, ``timm/<name>``, stands for all names that
        begin as it does and are not registered themselves; the longest such beginning counts.

        Raises:
            ValueError: The name is taken; says by whom.
            TypeError: The class has no `@dataclass Config` of its own.
        """

        def add(entry: Any) -> Any:
            if self._settings and isinstance(entry, type):
                config = vars(entry).get("Config")
                if not is_dataclass(config):
                    raise TypeError(
                        f"{self.kind} '{name}': {entry.__name__} needs its own @dataclass Config"
                    )
                cast(Any, config).owner = entry
            for one in (name, *aliases):
                taken = self._holder(one)
                if taken is not None and taken is not entry:
                    raise ValueError(
                        f"{self.kind} '{one}' is already {taken.__module__}.{taken.__qualname__}"
                    )
                self._entries[one] = entry
            return entry

        return add

    def get(self, name: str) -> Any:
        """The entry registered as `name`; `KeyError` with the nearest names if there is none."""
        return self.match(name)[0]

    def match(self, name: str) -> tuple[Any, str]:
        """As `get`, with what stands in the placeholder's place; empty for a name without one."""
        names = list(self)
        if name in names:
            return self._entries[name], ""
        begins = [b for b in map(_beginning, names) if b is not None and str(name).startswith(b)]
        if not begins:
            raise KeyError(f"unknown {self.kind} '{name}'{did_you_mean(name, names)}")
        longest = max(begins, key=len)
        return self._holder(f"{longest}<"), str(name).removeprefix(longest)

    def _holder(self, name: str) -> Any:
        """The entry that `name` stands for already, if any; placeholders may differ."""
        begins = _beginning(name)
        alike = (
            e for k, e in self._entries.items() if begins is not None and _beginning(k) == begins
        )
        return self._entries.get(name) or next(alike, None)

    def __contains__(self, name: object) -> bool:
        try:
            self.match(cast(str, name))
        except KeyError:
            return False
        return True

    def name_of(self, entry: Any) -> str:
        """The first name under which `entry` was registered."""
        return next(name for name, known in self._entries.items() if known is entry)

    def __iter__(self) -> Iterator[str]:
        importlib.import_module(self._package)
        return iter(sorted(self._entries))


def _beginning(name: str) -> str | None:
    """What stands before the placeholder of ``timm/<name>``; None for a name without one."""
    begins, placeholder, _ = name.partition("<")
    return begins if placeholder else None


def did_you_mean(word: Any, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or the choices when nothing is near and they are few."""
    names = list(options)
    near = difflib.get_close_matches(str(word), names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f" (have: {', '.join(names)})" if names else ""


MODELS = Registry("model", key="arch", package="xraygpt.models")
PROCESSORS = Registry("processor", key="name", package="xraygpt.processors.builtin")
BUILDERS = Registry("dataset builder", key="builder", package="xraygpt.datasets")
TASKS = Registry("task", key="name", package="xraygpt.tasks")
RUNNERS = Registry("runner", key="runner", package="xraygpt.runners")
VOCABULARIES = Registry("vocabulary", key="vocabulary", package="xraygpt.vocabulary")
OPTIMIZERS = Registry("optimizer", key="name", package="xraygpt.runners.optimizers")
ENCODERS = Registry("encoder", key="vit_model", package="xraygpt.models", settings=False)
LR_SCHEDULERS = Registry("lr scheduler", key="lr_sched", package="xraygpt.runners.schedules")


class _LavisSpelling:
    """`registry.register_model("x")`, `registry.get_model_class("x")` and so on, for every kind."""

    register_model = staticmethod(MODELS.register)
    register_processor = staticmethod(PROCESSORS.register)
    register_builder = staticmethod(BUILDERS.register)
    register_task = staticmethod(TASKS.register)
    register_runner = staticmethod(RUNNERS.register)
    register_vocabulary = staticmethod(VOCABULARIES.register)
    register_optimizer = staticmethod(OPTIMIZERS.register)
    register_encoder = staticmethod(ENCODERS.register)
    register_lr_scheduler = staticmethod(LR_SCHEDULERS.register)

    get_model_class = staticmethod(MODELS.get)
    get_processor_class = staticmethod(PROCESSORS.get)
    get_builder_class = staticmethod(BUILDERS.get)
    get_task_class = staticmethod(TASKS.get)
    get_runner_class = staticmethod(RUNNERS.get)
    get_vocabulary_class = staticmethod(VOCABULARIES.get)
    get_optimizer_class = staticmethod(OPTIMIZERS.get)
    get_encoder_class = staticmethod(ENCODERS.get)
    get_lr_scheduler_class = staticmethod(LR_SCHEDULERS.get)

    @staticmethod
    def list_models() -> list[str]:
        """Names YAML may give as `model.arch`."""
        return list(MODELS)

    @staticmethod
    def list_processors() -> list[str]:
        """Names YAML may give as a processor's `name`."""
        return list(PROCESSORS)

    @staticmethod
    def list_datasets() -> list[str]:
        """Names YAML may give as `datasets.<label>.builder`."""
        return list(BUILDERS)

    @staticmethod
    def list_tasks() -> list[str]:
        """Names YAML may give as `run.task`."""
        return list(TASKS)

    @staticmethod
    def list_runners() -> list[str]:
        """Names YAML may give as `run.runner`."""
        return list(RUNNERS)

    @staticmethod
    def list_vocabularies() -> list[str]:
        """Names YAML may give as `vocabulary`."""
        return list(VOCABULARIES)

    @staticmethod
    def list_optimizers() -> list[str]:
        """Names YAML may give as `run.optimizer`."""
        return list(OPTIMIZERS)

    @staticmethod
    def list_encoders() -> list[str]:
        """Names YAML may give as `model.vit_model`; ``<…>`` is a placeholder."""
        return list(ENCODERS)

    @staticmethod
    def list_lr_schedulers() -> list[str]:
        """Names YAML may give as `run.lr_sched`."""
        return list(LR_SCHEDULERS)


registry = _LavisSpelling()
