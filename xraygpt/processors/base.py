"""What every processor offers: an item in, a tensor or text out; no device, file or global RNG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xraygpt.common.registry import PROCESSORS, Plugin, Registry


class BaseProcessor(Plugin):
    """Item -> tensor or text. Subclasses state shape, dtype and range of both sides."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings every processor shares: none."""

        kind: ClassVar[Registry] = PROCESSORS

    deterministic = True
    """Whether the result depends on the item alone; features of others are not cached."""

    def __init__(self, config: Any, **_: Any) -> None:
        self.config = config

    def __call__(self, item: Any, draw: str = "") -> Any:
        """Process `item`; `draw` keys whatever is random."""
        raise NotImplementedError
