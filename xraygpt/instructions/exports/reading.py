"""Reading of the items of an instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xraygpt.instructions.items import Item


def read_items(path: Path) -> Iterator[Item]:
    """Yield the items of a file, one by one."""
    with path.open("rb") as file:
        for line in file:
            yield Item.from_json(line)
