"""Prepare training data for nnU-Net v2 from ACDC and M&Ms.

    python -m xraygpt.prepare_nnunet --acdc ACDC/training --mnms OpenDataset --out nnUNet_raw

End diastole and end systole of each patient become two cases with ACDC's labels. The folds keep
both on the same side; they are written where nnU-Net looks for them. The README in the dataset's
folder has the commands to plan, train and predict.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xraygpt.common.cli import at_least, existing_path, readable_file, run_main
from xraygpt.common.errors import InputError
from xraygpt.segmentation.nnunet_corpora import Patient, find_acdc, find_mnms
from xraygpt.segmentation.nnunet_dataset import Place, Summary, write_dataset


def main() -> None:
    """Parse the command line and write the dataset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--acdc", type=existing_path, nargs="+", default=[], metavar="FOLDER",
        help="folders with patients of ACDC, such as its folder training")  # fmt: skip
    add("--mnms", type=existing_path, nargs="+", default=[], metavar="FOLDER",
        help="folders with patients of M&Ms")  # fmt: skip
    add("--mnms-table", type=readable_file, metavar="CSV",
        help="table with External code, ED and ES; default: the one near --mnms")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FOLDER", help="nnU-Net's folder nnUNet_raw")
    add("--preprocessed", type=Path, metavar="FOLDER",
        help="nnU-Net's folder nnUNet_preprocessed; default: next to --out")  # fmt: skip
    add("--dataset-id", type=at_least(1), default=27, metavar="N", help="1 to 999; default: 27")
    add("--seed", type=int, default=0, help="seed of the folds")
    add("--skip-faulty", action="store_true",
        help="leave out patients whose files cannot be used, instead of refusing all")  # fmt: skip
    args = parser.parse_args()
    if not args.acdc and not args.mnms:
        raise InputError("there is nothing to prepare: give --acdc, --mnms or both")
    if args.dataset_id > 999:
        raise InputError(f"--dataset-id {args.dataset_id}: must be at most 999")
    preprocessed = args.preprocessed or args.out.resolve().with_name("nnUNet_preprocessed")
    place = Place(args.out, preprocessed, args.dataset_id)
    place.require_free()
    summary = write_dataset(
        place, _find_patients(args), skip_faulty=args.skip_faulty, seed=args.seed
    )
    sys.stdout.write(_report(place, summary))


def _find_patients(args: argparse.Namespace) -> list[Patient]:
    return [*find_acdc(args.acdc), *find_mnms(args.mnms, args.mnms_table)]


def _report(place: Place, summary: Summary) -> str:
    cases = sum(map(len, summary.cases.values()))
    lines = [f"{place.raw / place.name}: {cases} cases of {len(summary.cases)} patients"]
    if summary.faults:
        lines.append(f"{len(summary.faults)} patients were left out")
    if summary.other_headers:
        lines.append(
            f"the headers of {summary.other_headers} masks place them elsewhere than their images; "
            "pixels were paired in the order of the files, so look at some of them"
        )
    lines.append(f"the commands to train are in {place.raw / place.name / 'README.md'}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(run_main(main))
