"""Convert weights between projects: python -m xraygpt.convert SOURCE OUT.

other projects' weights -> a folder:  python -m xraygpt.convert eva_vit_g.pth weights/eva
LLaVA-NeXT, RadVLM -> transformers:   python -m xraygpt.convert llava_run weights/llava --from llava
a run of echovlm -> a folder:         python -m xraygpt.convert assets/echovlm weights/echovlm --from echovlm
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
    parser.add_argument(
        "--to", choices=("xraygpt", "pth", "transformers", "transformers5"), default="xraygpt"
    )
    parser.add_argument(
        "--from", dest="origin", choices=("auto", "llava", "echovlm"), default="auto",
        help="program that wrote the source; llava: LLaVA-NeXT and its forks, such as RadVLM's",
    )  # fmt: skip
    for option, text in _LLAVA_OPTIONS.items():
        parser.add_argument(option, type=Path, metavar="FOLDER", help=f"with llava: {text}")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE",
        help="with echovlm: tokenizer.pkl, if it is not in tokenizer/ beside the run",
    )  # fmt: skip
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
    _check(parser, args)
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.jobs import convert as job

    jobs = {
        "xraygpt": job.convert_to_xraygpt,
        "pth": job.export_pth,
        "transformers": job.export_transformers,
        "transformers5": job.export_transformers,
    }
    sys.stdout.write(f"{jobs[args.to](args)}\n")


_LLAVA_OPTIONS = {
    "--vision-tower": "the vision tower, if the source lacks it",
    "--processor": "the tokenizer, if the source lacks it",
    "--base": "the model that a LoRA adapter or a projector belongs to",
}


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.origin != "auto" and args.to != "xraygpt":
        parser.error(f"--from {args.origin} has a format of its own; leave out --to {args.to}")
    if args.tokenizer is not None and not args.tokenizer.is_file():
        raise WeightsError(f"{args.tokenizer}: no such file")
    require_new_folder(args.out)
    for path in (args.vision_tower, args.processor, args.base):
        if path is not None and not path.is_dir():
            raise WeightsError(f"{path}: no such folder")
    _require_source(args.source)


def _require_source(source: str) -> None:
    path = Path(source).expanduser()
    if not (source.startswith("package:") or path.exists() or is_run_or_checkpoint(path)):
        raise WeightsError(f"there are no weights at {source}")


if __name__ == "__main__":
    sys.exit(run_main(main))
