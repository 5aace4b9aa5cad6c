"""Train from one YAML: python train.py --cfg-path train_configs/iu_xray_stage1.yaml."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Parse, load, build, train."""
    from xraygpt.common.cli import command_line

    args = command_line(__doc__).parse_args()
    # Torch takes seconds: help and typing errors do not wait for it.
    from xraygpt.common.config import load, to_yaml
    from xraygpt.experiment import Training, build_runner

    experiment = load(Training, args.cfg_path, args.options)
    if args.print_config:
        print(to_yaml(experiment), end="")
        return
    runner = build_runner(experiment)
    if args.dry_run:
        print(json.dumps(runner.dry_run()))
        return
    runner.train()
    if runner.accelerator.is_main_process:
        print(runner.run_folder)


if __name__ == "__main__":
    from xraygpt.common.cli import guarded

    sys.exit(guarded(main))
