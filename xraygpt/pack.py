"""A trained model to hand on: python -m xraygpt.pack output/my_run/best weights/my_model.

Everything that was trained here goes into one folder, matrices in half precision: the Q-Former, the
projection and the adapters, a vision encoder of a run (`encoder/`), an LLM of a run (`llm/`), and
with `--finding-head FILE` what `xraygpt.probe --save` fitted on the encoder. What is somebody else's
stays where it is: encoders and LLMs of packages, folders and files. A YAML then says:

    model: {…, vit_model: run/weights/my_model/encoder, llama_model: weights/my_model/llm, ckpt: weights/my_model}
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.checkpoint import find_checkpoint, is_run_like
from xraygpt.common.cli import guarded, readable
from xraygpt.common.publishing import refuse_taken


def main() -> None:
    """Read the command line and pack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run, <run>/best or a checkpoint")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--finding-head", type=readable, default=None, help="the head to put in it")
    given = parser.parse_args()
    refuse_taken(given.out)
    if not is_run_like(given.run):
        find_checkpoint(given.run)  # says what is amiss
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.jobs.pack import pack

    pack(given.run, given.out, given.finding_head)
    size = sum(p.stat().st_size for p in given.out.rglob("*") if p.is_file())
    sys.stdout.write(f"{given.out}: {size / 2**20:.1f} MiB\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
