"""Evaluate several models on several tasks: python -m xraygpt.evaluate_all --cfg-path YAML.

The YAML file names the models, one corpus and the tasks (table_configs/radvlm.yaml). Each pair
is one evaluation with its controls and its own result page; then a table is printed, with the score
of each model on each task, the strongest control below it, and a dash where a model cannot do a
task. A repeated command continues where an earlier one stopped, and answers are not asked for
twice.

On several GPUs, start one command for each with --shard, then the same command without it:

    CUDA_VISIBLE_DEVICES=0 python -m xraygpt.evaluate_all --cfg-path YAML --shard 1/2
    CUDA_VISIBLE_DEVICES=1 python -m xraygpt.evaluate_all --cfg-path YAML --shard 2/2

Exit code 3: the table is written, but an evaluation failed; the reasons are below the table.
"""

from __future__ import annotations

import argparse
import sys

from xraygpt.common.cli import add_overrides, readable_file, run_main, shard
from xraygpt.common.errors import XrayGPTError


class SomeFailed(XrayGPTError):
    """The table is written, but some evaluations failed."""

    exit_code = 3


def main() -> None:
    """Parse the command line, evaluate and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cfg-path", type=readable_file, required=True, metavar="YAML", help="models and tasks")
    add("--models", nargs="+", default=[], help="only these models of the file")
    add("--tasks", nargs="+", default=[], help="only these tasks of the file")
    add(
        "--shard", type=shard, metavar="K/N",
        help="answer only every N-th question, starting with the K-th, and score nothing",
    )  # fmt: skip
    add_overrides(parser)
    args = parser.parse_args()
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.common.config import load
    from xraygpt.jobs.model_table import ModelTable, evaluate_all, write_table

    settings = load(ModelTable, args.cfg_path, args.options)
    cells = evaluate_all(settings, args.models, args.tasks, args.shard)
    failed = [f"{m}, {t}" for m, row in cells.items() for t, cell in row.items() if cell.failed]
    if args.shard:
        total = sum(cell.n for row in cells.values() for cell in row.values())
        sys.stdout.write(
            f"this shard has {total} answers; run without --shard to collect and score all\n"
        )
    else:
        sys.stdout.write(write_table(settings, cells))
        sys.stdout.write(f"{settings.run.output_dir / 'table.md'}\n")
    if failed:
        raise SomeFailed(f"{len(failed)} evaluations failed: {'; '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run_main(main))
