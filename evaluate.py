"""Measure a model beside its controls: python evaluate.py --cfg-path eval_configs/x.yaml."""

from __future__ import annotations

import sys


def main() -> None:
    """Parse, load, build, predict, score."""
    from xraygpt.common.cli import command_line, shard

    parser = command_line(__doc__)
    parser.add_argument(
        "--shard", type=shard, metavar="K/N", help="answer every N-th alone, from the K-th on"
    )
    args = parser.parse_args()
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.common.config import load, to_yaml
    from xraygpt.evaluation.scoring import as_markdown
    from xraygpt.experiment import Evaluation, build_evaluator

    if args.dry_run:
        args.options += ["run.max_samples=2", "run.shuffles=1"]
    experiment = load(Evaluation, args.cfg_path, args.options)
    if args.print_config:
        print(to_yaml(experiment), end="")
        return
    evaluator = build_evaluator(experiment)
    if args.shard:
        held = evaluator.answer_share(*args.shard)
        print(f"{held} answers of a shard; the same command without --shard gathers and scores all")
        return
    print(as_markdown(evaluator.run()), end="")
    print(evaluator.folder / "report.html")


if __name__ == "__main__":
    from xraygpt.common.cli import guarded

    sys.exit(guarded(main))
