"""Train a model from a YAML file: python train.py --cfg-path train_configs/iu_xray_stage1.yaml.

The file may also be one of LLaMA-Factory, for training or (do_predict) for prediction.
"""

from __future__ import annotations

import argparse
import json
import sys


def predict(args: argparse.Namespace, check: bool) -> None:
    """Predict as a YAML file of LLaMA-Factory says, and print the table and the verdict."""
    from xraygpt.common.config import to_yaml
    from xraygpt.requirements_check import load_complete

    options = [*args.options, "run.max_samples=2"] if args.dry_run else args.options
    experiment = load_complete("Evaluation", args.cfg_path, options, check=check)
    if args.print_config:
        print(to_yaml(experiment), end="")
        return
    from xraygpt.evaluation.generated_predictions import GENERATED
    from xraygpt.evaluation.score_table import as_markdown
    from xraygpt.evaluation.scoring import verdict_text
    from xraygpt.jobs import llama_factory

    folder, result = llama_factory.predict(experiment)
    print(as_markdown(result), end="")
    print(experiment.run.output_dir / GENERATED)
    print(folder / "report.html")
    print(verdict_text(result))


def main() -> None:
    """Parse the command line, build the runner and train."""
    from xraygpt.common.cli import config_parser

    args = config_parser(__doc__).parse_args()
    # Torch takes seconds to import; help, argument errors and missing files do not wait for it.
    from xraygpt.common.config import to_yaml
    from xraygpt.requirements_check import load_complete, names_prediction

    check = not args.print_config
    if names_prediction(args.cfg_path, args.options):
        predict(args, check)
        return
    experiment = load_complete("Training", args.cfg_path, args.options, check=check)
    if args.print_config:
        print(to_yaml(experiment), end="")
        return
    from xraygpt.experiment import build_runner

    runner = build_runner(experiment)
    if args.dry_run:
        from xraygpt.jobs import token_budget

        if runner.accelerator.is_main_process:
            for budget in token_budget.of_runner(experiment, runner):
                print(budget)
        print(json.dumps(runner.dry_run()))
        return
    runner.train()
    if runner.accelerator.is_main_process:
        print(runner.run_folder)


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
