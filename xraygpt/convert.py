"""Convert weights between projects: python -m xraygpt.convert SOURCE OUT.

other projects' weights -> a folder:  python -m xraygpt.convert eva_vit_g.pth weights/eva
a run -> a .pth of XrayGPT:           python -m xraygpt.convert output/my_run/best my.pth --to pth
a run -> plain transformers:          python -m xraygpt.convert output/my_run/best out --to transformers
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.checkpoint import is_run_or_checkpoint
from xraygpt.common.cli import add_overrides, run_main
from xraygpt.common.errors import WeightsError
from xraygpt.common.publishing import require_new_folder


def main() -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", help="file, folder, run, or package:<name> for the GGUF file in a package"
    )
    parser.add_argument("out", type=Path, help="folder to create, or file to create with --to pth")
    parser.add_argument("--to", choices=("xraygpt", "pth", "transformers"), default="xraygpt")
    parser.add_argument("--vit-model", help="encoder in the file, if it cannot be detected")
    parser.add_argument(
        "--merge-lora", action="store_true", help="merge LoRA into the LLM's weights"
    )
    parser.add_argument(
        "--with-vision", action="store_true", help="with --to pth: include the encoder"
    )
    parser.add_argument(
        "--license", default="other", help="license named in the model card, e.g. llama2"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="with --to transformers: data type",
    )
    add_overrides(parser)
    args = parser.parse_args()
    require_new_folder(args.out)
    _require_source(args.source)
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.jobs import convert as job

    jobs = {
        "xraygpt": job.convert_to_xraygpt,
        "pth": job.export_pth,
        "transformers": job.export_transformers,
    }
    sys.stdout.write(f"{jobs[args.to](args)}\n")


def _require_source(source: str) -> None:
    path = Path(source).expanduser()
    if not (source.startswith("package:") or path.exists() or is_run_or_checkpoint(path)):
        raise WeightsError(f"there are no weights at {source}")


if __name__ == "__main__":
    sys.exit(run_main(main))
