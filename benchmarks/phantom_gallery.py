"""Draw the gallery of docs/phantom.md and measure how fast phantoms are drawn.

python benchmarks/phantom_gallery.py --out docs/img/phantoms.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from xraygpt.phantom.corpus import Recipe
from xraygpt.phantom.findings import Finding
from xraygpt.phantom.render import Study, render

TILE, COLUMNS = 256, 6
EXAMPLES: tuple[tuple[str, tuple[Finding, ...]], ...] = (
    ("frontal", ()),
    ("frontal", ()),
    ("frontal", (Finding("cardiomegaly", degree="mild"),)),
    ("frontal", (Finding("cardiomegaly", degree="severe"),)),
    ("frontal", (Finding("pleural_effusion", "right", degree="mild"),)),
    ("frontal", (Finding("pleural_effusion", "bilateral", degree="moderate"),)),
    ("frontal", (Finding("pneumothorax", "left", degree="moderate"),)),
    ("frontal", (Finding("pneumothorax", "right", degree="severe"),)),
    ("frontal", (Finding("consolidation", "right", "lower", "severe"),)),
    ("frontal", (Finding("consolidation", "left", "middle", "mild"),)),
    ("frontal", (Finding("nodule", "left", "upper", size_mm=24),)),
    ("frontal", (Finding("nodule", "right", "lower", size_mm=14),)),
    ("frontal", (Finding("atelectasis", "left"),)),
    ("frontal", (Finding("atelectasis", "bilateral"),)),
    ("frontal", (Finding("calcified_granuloma", "right", "middle", size_mm=8),)),
    ("frontal", (Finding("hyperinflation"),)),
    ("frontal", (Finding("fracture", "left"),)),
    ("frontal", (Finding("pacemaker", "left"),)),
    ("frontal", (Finding("catheter", "right"),)),
    (
        "frontal",
        (Finding("pleural_effusion", "left", degree="severe"), Finding("catheter", "left")),
    ),
    ("lateral", ()),
    ("lateral", (Finding("hyperinflation"),)),
    ("lateral", (Finding("pleural_effusion", "right", degree="moderate"),)),
    ("lateral", (Finding("consolidation", "right", "lower", "severe"),)),
)


def gallery() -> Image.Image:
    """Draw 24 phantoms with captions."""
    sheet = Image.new("L", (COLUMNS * TILE, len(EXAMPLES) // COLUMNS * (TILE + 18)))
    draw = ImageDraw.Draw(sheet)
    for i, (view, findings) in enumerate(EXAMPLES):
        picture = render(Study(f"gallery-{i}", findings, 2), view, TILE)  # type: ignore[arg-type]
        x, y = i % COLUMNS * TILE, i // COLUMNS * (TILE + 18)
        sheet.paste(Image.fromarray(picture.pixels), (x, y))
        names = [" ".join([*filter(None, (f.side, f.zone, f.name))]) for f in findings]
        draw.text((x + 4, y + TILE + 2), f"SYNTHETIC {view}: {', '.join(names) or 'normal'}", 230)
    return sheet


def images_per_second(size: int = 224, count: int = 60) -> float:
    """Frontal phantoms drawn per second in one process."""
    recipe = Recipe(size=size)
    studies = [recipe.build_study(n)[0] for n in range(count)]
    render(studies[0], "frontal", size)
    start = time.perf_counter()
    for study in studies:
        render(study, "frontal", size)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Draw and save the gallery, and measure the speed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/img/phantoms.png"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet = gallery()
    sheet.save(args.out, optimize=True)
    print(f"{args.out}: {np.asarray(sheet).shape}")
    print(f"{images_per_second():.1f} images per second at 224 px in one process")


if __name__ == "__main__":
    main()
