"""Turn raw reports and pictures into a training folder: python -m xraygpt.curate openi ….

    openi         --reports ecgen-radiology (or the .tgz)   --images NLMCXR_png
    openi_kaggle  --reports FOLDER (with both CSV files)    --images FOLDER/images_normalized
    roco          --reports captions.txt (or a .csv)        --images images
    mimic         --reports mimic-cxr-reports               --images mimic-cxr-jpg
    own           --reports table.csv (docs/data.md)        --images FOLDER

By default, reports are rewritten by rules: this needs no key and no network, and no text leaves
this machine. Priors, masks and view descriptions are removed, and findings are kept; a report whose
findings, sides or numbers would change is held back and listed. With --provider local, openai or
azure, a language model rewrites the reports; see docs/curation.md.

Single steps: filter writes the selected reports as JSON lines, images collects their pictures, and
audit writes a page that shows the source and the result of randomly chosen rows side by side, for
manual marking.

Exit codes: 0: every report was accepted or rejected. 3: the folder is written, but a file could not
be read, a picture is missing, or the model gave no usable answer for some reports; held_back.csv
lists them. 1: the endpoint or the budget stopped the run. 2: the command or the data contains a
mistake. 130, 143: the run was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xraygpt.common.checks import SettingsError
from xraygpt.common.cli import run_main
from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.curation.files import write_left_out, write_reports
from xraygpt.curation.folder import FAILURE_STAGES, HELD_BACK_FILE
from xraygpt.curation.llm.privacy import check_privacy
from xraygpt.curation.llm.tasks import TASKS
from xraygpt.curation.model_options import add_model_options, refuse_model_options, settings_from
from xraygpt.curation.pictures import select_pictures
from xraygpt.curation.recipe_table import CODED_CORPORA
from xraygpt.curation.select import Filters, Selection, get_corpus, select_reports
from xraygpt.curation.sources import CORPORA

if TYPE_CHECKING:
    from xraygpt.curation.llm.settings import RewriteSettings
    from xraygpt.curation.pipeline import CurationResult


class SomeReportsFailed(XrayGPTError):
    """The output is written, but a file or an endpoint failed for some of the reports."""

    exit_code = 3


class InternalError(XrayGPTError):
    """A bug, reported without the message of the exception, which may contain report text."""


def main() -> None:
    """Run the step given on the command line.

    Raises:
        InternalError: An unexpected exception occurred; only its type and location are named.
    """
    args = _build_parser().parse_args()
    location = ""
    try:
        args.run(args)
        return
    except (XrayGPTError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "xraygpt" in frame.filename] or list(frames)
        file = Path(ours[-1].filename).name
        location = f"{type(error).__name__} at {file}:{ours[-1].lineno}"
    # Raised outside the handler, so that the exception is not shown as its context.
    raise InternalError(
        f"a bug in xraygpt, please report it: {location}. The message of the exception is not "
        "shown because it may contain report text; all answers so far are saved"
    )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that shows all defaults except empty ones."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_empty = action.default in (None, False, "", [])
        return action.help if is_empty else super()._get_help_string(action)


class _StepParser(argparse.ArgumentParser):
    """Parser for one step, whose options cannot be abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, formatter_class=_HelpFormatter, allow_abbrev=False)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xraygpt.curate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(
        required=True,
        metavar="CORPUS or STEP",
        parser_class=_StepParser,
    )
    for name in CORPORA:
        step = steps.add_parser(name, help=f"turn {name} into a training folder")
        step.set_defaults(run=_run_curate, corpus=name)
        _add_source(step, out="the training folder")
        _add_filters(step)
        if name in CODED_CORPORA:
            _add_codes(step)
        add_model_options(step, tuple(TASKS))
    step = steps.add_parser("filter", help="write the selected reports as JSON lines")
    step.set_defaults(run=_run_filter)
    step.add_argument("corpus", choices=CORPORA)
    _add_source(step, images=False, out="the output file, ending in .jsonl")
    _add_filters(step)
    step = steps.add_parser("images", help="collect the pictures of selected reports")
    step.set_defaults(run=_run_images)
    step.add_argument("corpus", choices=CORPORA)
    _add_source(step, out="the output folder")
    _add_filters(step)
    step = steps.add_parser("audit", help="show source and result of random rows")
    step.set_defaults(run=_run_audit)
    step.add_argument("corpus", choices=CORPORA)
    _add_source(step, images=False, out="the training folder to audit")
    step.add_argument("--rows", type=int, default=30, help="number of rows")
    step.add_argument("--seed", type=int, default=0, help="seed for the random choice")
    step.add_argument("--marks", type=Path, help="a marked audit.csv: count the good rows")
    return parser


def _add_source(step: argparse.ArgumentParser, *, out: str, images: bool = True) -> None:
    add = step.add_argument
    add("--reports", type=Path, required=True, help="as downloaded, or a .jsonl file from filter")
    if images:
        add("--images", type=Path, required=True, help="folder that contains the pictures")
        add("--copy", action="store_true", help="copy pictures instead of hard-linking them")
    add("--out", type=Path, required=True, help=out)


def _add_filters(step: argparse.ArgumentParser) -> None:
    default = Filters()
    add = step.add_argument
    add(
        "--min-findings-words", type=int, default=default.min_findings_words,
        help="minimum number of words in the findings",
    )  # fmt: skip
    add(
        "--min-impression-words", type=int, default=default.min_impression_words,
        help="minimum number of words in the impression",
    )  # fmt: skip
    add("--views", choices=("frontal", "all"), default=default.views, help="views to select")
    add(
        "--modality", default=argparse.SUPPRESS,
        help="for captions: xray (default for ROCO), ct, …, any",
    )  # fmt: skip
    add(
        "--region", choices=("chest", "any"), default=default.region,
        help="for captions: the body region to select",
    )  # fmt: skip


def _add_codes(step: argparse.ArgumentParser) -> None:
    group = step.add_argument_group("for the recipes train_configs/iu_xray_*.yaml")
    add = group.add_argument
    add(
        "--codes", action="store_true",
        help="write reports.jsonl with the reports as dictated and their human coding",
    )  # fmt: skip
    add("--splits", type=Path, help="R2Gen's annotation.json; default: lists in the package")
    add("--projections", type=Path, help="indiana_projections.csv: the views, for the XML reports")


def _filters_from(args: argparse.Namespace) -> Filters:
    try:
        return Filters(
            min_findings_words=args.min_findings_words,
            min_impression_words=args.min_impression_words,
            views=args.views,
            modality=getattr(args, "modality", ""),
            region=args.region,
        )
    except SettingsError as error:
        raise InputError(error.as_options()) from None


def _run_curate(args: argparse.Namespace) -> None:
    from xraygpt.curation.pipeline import curate

    filters = _filters_from(args)
    if getattr(args, "codes", False):
        refuse_model_options(args, tuple(TASKS))
        _write_codes(args, filters)
        return
    for name in ("splits", "projections"):
        if getattr(args, name, None) is not None:
            raise InputError(f"--{name} needs --codes")
    settings = None
    if args.provider == "rules":
        refuse_model_options(args, tuple(TASKS))
    else:
        settings = settings_from(args, TASKS[args.task])
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out} is a file; name a folder")
    if settings is not None and args.dry_run:
        _dry_run(args, filters, settings)
        return
    result = curate(
        args.corpus, args.reports, args.images, args.out, filters, settings=settings,
        copy=args.copy,
    )  # fmt: skip
    _print_result(result, args.out)
    if settings is not None:
        cost = f", {result.usage.cost:.2f} by the price file" if settings.price else ""
        print_line(
            f"{result.calls} calls in this run; over all runs {result.usage.tokens_in:,} tokens "
            f"read and {result.usage.tokens_out:,} written{cost}"
        )
    left_out = result.manifest["left_out"]
    failures = [f"{left_out[stage]} {stage}" for stage in FAILURE_STAGES if left_out.get(stage)]
    if failures:
        raise SomeReportsFailed(f"{', '.join(failures)}: see {args.out / HELD_BACK_FILE}")


def _write_codes(args: argparse.Namespace, filters: Filters) -> None:
    from xraygpt.curation.recipe_table import TABLE_FILE, write_recipe_table

    manifest = write_recipe_table(
        args.corpus, args.reports, args.images, args.out, filters,
        splits=args.splits, projections=args.projections, copy=args.copy,
    )  # fmt: skip
    counts = ", ".join(f"{n} {split}" for split, n in manifest["pictures_by_split"].items())
    print_line(f"{args.out / TABLE_FILE}: {manifest['pictures']} pictures ({counts})")
    print_line(f"licence: {manifest['licence']}, {manifest['terms']}")
    if unknown := manifest["pictures_by_view"].get("unknown"):
        print_line(
            f"the view of {unknown} pictures is unknown, so laterals are among them; "
            "--projections names Kaggle's table of views"
        )
    if absent := sum(manifest["left_out"].get(s, 0) for s in ("unreadable", "picture")):
        print_line(f"{absent} reports or pictures left out: see {args.out / HELD_BACK_FILE}")


def _print_result(result: CurationResult, out: Path) -> None:
    manifest, rate = result.manifest, result.manifest["acceptance"]
    steps = " > ".join(f"{count} {name}" for name, count in manifest["left_after"].items())
    left_out = ", ".join(f"{count} {stage}" for stage, count in manifest["left_out"].items())
    print_line(
        f"{steps} > {manifest['accepted']} accepted ({rate['rate']:.1%}, {rate['low']:.1%} to "
        f"{rate['high']:.1%})"
    )
    print_line(f"excluded: {left_out or 'nothing'}")
    print_line(
        f"{out}: {manifest['pictures']} pictures, "
        f"{manifest['pictures_of_published_test_split']} of them in the published test split, "
        f"{manifest['pictures_of_lockbox']} in the lockbox"
    )


def print_line(line: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(f"{line}\n")


def _dry_run(args: argparse.Namespace, filters: Filters, settings: RewriteSettings) -> None:
    from xraygpt.curation.llm.cost import estimate_run
    from xraygpt.curation.pipeline import build_items

    corpus = get_corpus(args.corpus)
    privacy = check_privacy(corpus, settings.endpoint, settings.agreement, settings.batch)
    selection = select_reports(args.corpus, args.reports, filters)
    select_pictures(selection, args.images, filters)
    items = [item for item, _ in build_items(selection, settings)]
    print_line(str(estimate_run(items, settings, args.out, args.sample)))
    print_line(f"  privacy  would be {privacy}")


def _run_filter(args: argparse.Namespace) -> None:
    if args.out.suffix != ".jsonl":
        raise InputError(f"--out {args.out}: the file name must end in .jsonl")
    selection = select_reports(args.corpus, args.reports, _filters_from(args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_reports(selection.reports, args.corpus, args.out)
    left_out = args.out.with_suffix(".left_out.csv")
    write_left_out(selection.left_out, left_out)
    _print_steps(selection)
    print_line(f"{args.out}: {len(selection.reports)} reports; {left_out} lists the others")
    unreadable = sum(row.stage == "unreadable" for row in selection.left_out)
    if unreadable:
        raise SomeReportsFailed(f"{unreadable} reports could not be read: see {left_out}")


def _run_images(args: argparse.Namespace) -> None:
    from xraygpt.curation.folder import link_pictures

    filters = _filters_from(args)
    selection = select_reports(args.corpus, args.reports, filters)
    select_pictures(selection, args.images, filters)
    pictures = selection.all_pictures()
    link_pictures(pictures, args.out / "image", args.copy)
    held_back = args.out / HELD_BACK_FILE
    write_left_out(selection.left_out, held_back)
    _print_steps(selection)
    print_line(f"{args.out / 'image'}: {len(pictures)} pictures; {HELD_BACK_FILE} lists the others")
    stages = Counter(row.stage for row in selection.left_out)
    failures = sum(stages[stage] for stage in FAILURE_STAGES)
    if failures:
        raise SomeReportsFailed(f"{failures} are unreadable or lack a picture: see {held_back}")


def _print_steps(selection: Selection) -> None:
    print_line(" > ".join(f"{count} {name}" for name, count in selection.steps))


def _run_audit(args: argparse.Namespace) -> None:
    from xraygpt.curation.audit import summarise_marks, write_audit

    if args.rows < 1:
        raise InputError("--rows must be at least 1")
    if args.marks:
        # A bare name is first looked up in the working directory, then in the audited folder.
        in_folder = args.out / args.marks.name
        print_line(summarise_marks(args.marks if args.marks.exists() else in_folder))
        return
    no_filter = Filters(min_findings_words=0, min_impression_words=0, modality="any")
    selection = select_reports(args.corpus, args.reports, no_filter)
    print_line(write_audit(selection, args.out, args.rows, args.seed))


if __name__ == "__main__":
    sys.exit(run_main(main))
