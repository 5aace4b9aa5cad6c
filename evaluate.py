"""Evaluate a model and its controls: python evaluate.py --cfg-path eval_configs/x.yaml."""

from __future__ import annotations

import sys


def main() -> None:
    """Parse the command line, predict, score and print the table."""
    from xraygpt.common.cli import config_parser, shard

    parser = config_parser(__doc__)
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="K/N",
        help="answer only every N-th sample, starting with the K-th",
    )
    args = parser.parse_args()
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.common.config import load, to_yaml
    from xraygpt.evaluation.score_table import as_markdown
    from xraygpt.experiment import Evaluation, build_evaluator

    if args.dry_run:
        args.options += ["run.max_samples=2", "run.shuffles=1"]
    experiment = load(Evaluation, args.cfg_path, args.options)
    if args.print_config:
        print(to_yaml(experiment), end="")
        return
    evaluator = build_evaluator(experiment)
    if args.shard:
        count = evaluator.answer_shard(*args.shard)
        print(
            f"this shard has {count} answers; run without --shard to collect and score all answers"
        )
        return
    print(as_markdown(evaluator.run()), end="")
    print(evaluator.folder / "report.html")


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
