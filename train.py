"""Train a model from a YAML file: python train.py --cfg-path train_configs/iu_xray_stage1.yaml."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Parse the command line, build the runner and train."""
    from xraygpt.common.cli import config_parser

    args = config_parser(__doc__).parse_args()
    # Torch takes seconds to import; help, argument errors and missing files do not wait for it.
    from xraygpt.common.config import to_yaml
    from xraygpt.requirements_check import load_complete

    check = not args.print_config
    experiment = load_complete("Training", args.cfg_path, args.options, check=check)
    if args.print_config:
        print(to_yaml(experiment), end="")
        return
    from xraygpt.experiment import build_runner

    runner = build_runner(experiment)
    if args.dry_run:
        print(json.dumps(runner.dry_run()))
        return
    runner.train()
    if runner.accelerator.is_main_process:
        print(runner.run_folder)


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
