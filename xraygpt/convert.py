"""Weights into our layout, and ours into others': python -m xraygpt.convert SOURCE OUT.

any weights -> a folder here:  python -m xraygpt.convert eva_vit_g.pth weights/eva
ours -> the lineage's .pth:    python -m xraygpt.convert output/my_run/best my.pth --to pth
ours -> plain transformers:    python -m xraygpt.convert output/my_run/best out --to transformers
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.checkpoint import is_run_like
from xraygpt.common.cli import add_overrides, guarded
from xraygpt.common.errors import WeightsError
from xraygpt.common.publishing import refuse_taken


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file, folder, run of ours, or package:<name> for its GGUF")
    parser.add_argument("out", type=Path, help="folder to make; a file for --to pth")
    parser.add_argument("--to", choices=("xraygpt", "pth", "transformers"), default="xraygpt")
    parser.add_argument("--vit-model", help="which encoder a file holds, if its names do not say")
    parser.add_argument("--merge-lora", action="store_true", help="add LoRA to the LLM's weights")
    parser.add_argument("--with-vision", action="store_true", help="--to pth: the encoder too")
    parser.add_argument("--license", default="other", help="for the model card, e.g. llama2")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="--to transformers: of all"
    )
    add_overrides(parser)
    given = parser.parse_args()
    refuse_taken(given.out)
    _refuse_absent(given.source)
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.jobs import convert as job

    to = {"xraygpt": job.to_ours, "pth": job.to_pth, "transformers": job.to_transformers}
    done = to[given.to](given)
    sys.stdout.write(f"{done}\n")


def _refuse_absent(source: str) -> None:
    path = Path(source).expanduser()
    if not (source.startswith("package:") or path.exists() or is_run_like(path)):
        raise WeightsError(f"no weights at {source}")


if __name__ == "__main__":
    sys.exit(guarded(main))
