"""Answer questions about images, or analyse studies.

python predict.py --cfg-path eval_configs/x.yaml --input path
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def analyse_studies(args: argparse.Namespace) -> None:
    """Write a report for each study."""
    from xraygpt.common.cli import refuse_options
    from xraygpt.common.config import to_tree, to_yaml
    from xraygpt.requirements_check import load_analysis

    refuse_options(args, "an analysis of studies", "question", "shard", "strict", "workers")
    config = load_analysis(args.cfg_path, args.options, check=not args.print_config)
    if args.print_config:
        print(to_yaml(config), end="")
        return
    from xraygpt.studies.predictor import StudyPredictor
    from xraygpt.studies.report import NOTICE

    predictor = StudyPredictor(config.run.build(), args.input, args.output, to_tree(config.run))
    if args.dry_run:
        print(f"studies: {len(predictor.studies)}; results would be written to {args.output}")
        return
    reports = predictor.run()
    if len(reports) == 1:
        print("\n".join(reports[0].findings))
    print(NOTICE)
    for folder in predictor.folders:
        for path in sorted(folder.glob("report.*")):
            print(path)


def main() -> None:
    """Parse the command line, answer and print the paths of the results."""
    from xraygpt.common.cli import add_strict, at_least, config_parser, existing_path, shard

    parser = config_parser(__doc__)
    parser.add_argument(
        "--input",
        type=existing_path,
        help="image, DICOM file, video, folder, or table (CSV or JSONL) with the column image or "
        "video; for an analysis, a study or a folder of studies",
    )
    parser.add_argument("--output", type=Path, default=Path("output/predict"), help="folder")
    parser.add_argument(
        "--question", "--prompt", default="", help="question to ask about every image"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="images per batch")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--workers", type=at_least(0), default=None, help="processes for reading images"
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="K/N",
        help="answer only every N-th image, starting with the K-th",
    )
    add_strict(parser)
    args = parser.parse_args()
    if args.input is None and not args.print_config:
        parser.error("--input is missing; pass an image, a DICOM file, a folder or a table")
    from xraygpt.requirements_check import names_analysis

    if names_analysis(args.cfg_path, args.options):
        analyse_studies(args)
        return
    # Torch takes seconds to import; help, argument errors and missing files do not wait for it.
    from xraygpt.common.config import to_yaml
    from xraygpt.requirements_check import load_complete

    experiment = load_complete(
        "Evaluation",
        args.cfg_path,
        args.options,
        need="model",
        device=args.device,
        check=not args.print_config,
    )
    if args.print_config:
        print(to_yaml(experiment), end="")
        return
    from xraygpt.experiment import build_predictor

    predictor = build_predictor(
        experiment,
        args.input,
        output_dir=args.output,
        question=args.question,
        device=args.device,
        batch_size=args.batch_size,
        workers=args.workers,
        shard=args.shard,
        strict=args.strict,
    )
    if args.dry_run:
        print(f"{len(predictor.indices)} inputs; results would be written to {predictor.folder}")
        return
    predictions = predictor.run()
    if len(predictions) == 1:
        print(predictions[0].prediction)
    print("AI output, not verified. Research use only, not for diagnosis.")
    if args.shard:
        print(
            f"this shard is done; run without --shard to collect all results in {predictor.folder}"
        )
        return
    print(predictor.folder / "predictions.jsonl")
    print(predictor.folder / "predictions.csv")
    print(predictor.folder / "report.html")


if __name__ == "__main__":
    from xraygpt.common.cli import run_main

    sys.exit(run_main(main))
