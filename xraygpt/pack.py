"""Bundle a trained model for sharing: python -m xraygpt.pack output/my_run/best weights/my_model.

All trained parts are saved in one folder with matrices in half precision: the Q-Former, the
projection and the adapters, a vision encoder from a run (`encoder/`), an LLM from a run (`llm/`)
and, with `--finding-head FILE`, the output of `xraygpt.probe --save`. Encoders and LLMs from
packages, folders and files are not copied. A YAML file then uses:

    model: {…, vit_model: run/weights/my_model/encoder, llama_model: weights/my_model/llm, ckpt: weights/my_model}
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.checkpoint import find_checkpoint, is_run_or_checkpoint
from xraygpt.common.cli import readable_file, run_main
from xraygpt.common.publishing import require_new_folder


def main() -> None:
    """Parse the command line and create the bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run, <run>/best or a checkpoint")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument(
        "--finding-head", type=readable_file, default=None, help="finding head to include"
    )
    parser.add_argument(
        "--evaluation",
        type=readable_file,
        default=None,
        help="evaluation YAML file whose task (plan and decoding) becomes the bundle's default",
    )
    args = parser.parse_args()
    require_new_folder(args.out)
    if not is_run_or_checkpoint(args.run):
        find_checkpoint(args.run)  # raises an error that gives the reason
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.jobs.pack import pack

    pack(args.run, args.out, args.finding_head, args.evaluation)
    size = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file())
    sys.stdout.write(f"{args.out}: {size / 2**20:.1f} MiB\n")


if __name__ == "__main__":
    sys.exit(run_main(main))
