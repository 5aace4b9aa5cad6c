"""What every processor offers: an item in, a tensor or text out; no device, file or global RNG."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from xraygpt.common.registry import PROCESSORS, Plugin, Registry


class BaseProcessor(Plugin):
    """Item -> tensor or text. Subclasses state shape, dtype and range of both sides."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings every processor shares: none."""

        kind: ClassVar[Registry] = PROCESSORS

        def for_eval(self) -> BaseProcessor.Config:
            """The settings to use outside training: the same, unless something is random."""
            return self

    deterministic = True
    """Whether the result depends on the item alone; features of others are not cached."""

    def __init__(self, config: Any, **_: Any) -> None:
        self.config = config

    def signature(self) -> dict[str, Any]:
        """All that decides the result for a given item; part of a feature cache's key."""
        cls = type(self)
        return {"class": f"{cls.__module__}.{cls.__qualname__}", **dataclasses.asdict(self.config)}

    def __call__(self, item: Any, draw: str = "") -> Any:
        """Process `item`; `draw` keys whatever is random."""
        raise NotImplementedError
