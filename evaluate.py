"""Evaluate a model and its controls: python evaluate.py --cfg-path eval_configs/x.yaml."""

from __future__ import annotations

import sys


def main() -> None:
    """Parse the command line, predict, score, and print the table and the verdict."""
    from xraygpt.common.cli import add_strict, config_parser, shard

    parser = config_parser(__doc__)
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="K/N",
        help="answer only every N-th sample, starting with the K-th",
    )
    add_strict(parser)
    args = parser.parse_args()
    # Torch takes seconds to import; help, argument errors and missing files do not wait for it.
    from xraygpt.common.config import to_yaml
    from xraygpt.requirements_check import load_complete

    if args.dry_run:
        args.options += ["run.max_samples=2", "run.shuffles=1"]
    check = not args.print_config
    experiment = load_complete("Evaluation", args.cfg_path, args.options, check=check)
    if args.print_config:
        print(to_yaml(experiment), end="")
        return
    from xraygpt.evaluation.score_table import as_markdown
    from xraygpt.evaluation.scoring import verdict_text
    from xraygpt.experiment import build_evaluator

    evaluator = build_evaluator(experiment, strict=args.strict)
    if args.shard:
        count = evaluator.answer_shard(*args.shard)
        print(
            f"this shard has {count} answers; run without --shard to collect and score all answers"
        )
        return
    result = evaluator.run()
    print(as_markdown(result), end="")
    if result["input_check"]:
        print(f"Input check: {result['input_check']}")
    print(evaluator.folder / "report.html")
    print(verdict_text(result))


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
