"""Have a language model judge answers: python -m xraygpt.judge KIND FOLDER --provider … --model ….

FOLDER is a result folder of evaluate.py. KIND is one of:

    conversation  a score from 0 to 10 for the answers of a dialogue (task conversation)
    green         errors and matched findings of a report (task report_generation)
    crimson       the same, weighted by clinical significance
    radfact       which sentences support each other (task grounded_report)

The answers of all conditions are judged, the controls included; equal ones once. Verdicts are kept
in FOLDER, so that a stopped run continues and nothing is asked twice. An answer of the judge in
another form is asked for once more, then counted and listed in unusable_KIND.csv. The scores are
then computed by python -m xraygpt.score, which this command runs at its end.

A judge can itself be measured, with --out for its verdicts: green and crimson on the folder of
RadPref (then python -m xraygpt.metrics.agreement DATA --verdicts OUT), radfact on a JSON file of
RadFact's examples.

The texts of the folder count as credentialed unless they are SYNTHETIC or --public-data is given:
they are sent to another host only with --zero-retention-agreement.

Exit codes: 0: everything is judged. 3: some answers of the judge could not be used. 1: the endpoint
or the budget stopped the run. 2: a mistake in the command. 130, 143: interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xraygpt.common.cli import add_imports, existing_path, import_plugins, run_main
from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.curation.model_options import add_model_options, settings_from

if TYPE_CHECKING:
    from xraygpt.curation.llm.settings import RewriteSettings
    from xraygpt.jobs.judge import Judged


class SomeUnusable(XrayGPTError):
    """The verdicts are written, but some answers of the judge could not be used."""

    exit_code = 3


def main() -> None:
    """Parse the command line, judge, and score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    kinds = ("conversation", "green", "crimson", "radfact")
    add("kind", choices=kinds, metavar="KIND", help="the judge: " + ", ".join(kinds))
    add("folder", type=existing_path, metavar="FOLDER", help="result folder of evaluate.py")
    add("--out", type=Path, help="folder for the verdicts, if FOLDER is RadPref or RadFact's")
    add("--conditions", nargs="+", default=[], help="only these, such as true own_history")
    add("--public-data", action="store_true", help="all texts in FOLDER are public")
    add_imports(parser)
    add_model_options(parser)
    args = parser.parse_args()
    if args.provider == "rules":
        raise InputError("a judge is a language model: choose one with --provider and --model")
    import_plugins(args.imports)
    # Torch takes seconds to import; help and argument errors do not wait for it.
    from xraygpt.judging.verdict_forms import JUDGES

    settings = settings_from(args, JUDGES[args.kind])
    if args.out is not None:
        _judge_given(args, settings)
    else:
        _judge_folder(args, settings)


def _judge_folder(args: argparse.Namespace, settings: RewriteSettings) -> None:
    from xraygpt.evaluation.score_table import as_markdown
    from xraygpt.evaluation.scoring import score_folder
    from xraygpt.jobs.judge import estimate, judge

    if not args.folder.is_dir():
        raise InputError(f"{args.folder} is a file; add --out FOLDER for the verdicts")
    what = (args.kind, args.folder, args.conditions, settings, args.public_data)
    if args.dry_run:
        sys.stdout.write(f"{estimate(*what, args.sample)}\n")
        return
    judged = judge(*what)
    sys.stdout.write(as_markdown(score_folder(args.folder)))
    _report(args.kind, args.folder, judged)


def _judge_given(args: argparse.Namespace, settings: RewriteSettings) -> None:
    """Judge RadPref's or RadFact's texts."""
    from xraygpt.jobs.judge import ask, check_texts
    from xraygpt.judging import given
    from xraygpt.metrics.verdicts import read_verdicts

    if args.conditions or args.dry_run:
        raise InputError("--conditions and --dry-run are for result folders of evaluate.py")
    check_texts(args.folder, args.public_data, settings)
    if args.kind == "radfact":
        pairs = given.read_radfact(args.folder)
        questions = list({q.key: q for q in (pair.question for pair in pairs)}.values())
    elif args.kind == "conversation":
        raise InputError("the judge conversation judges result folders; omit --out")
    else:
        questions = given.radpref_questions(args.folder, args.kind)
    judged = ask(args.kind, questions, args.out, settings)
    if args.kind == "radfact":
        verdicts = read_verdicts(args.out, "radfact")
        assert verdicts is not None
        sys.stdout.write(given.as_text(pairs, verdicts))
    _report(args.kind, args.out, judged)


def _report(kind: str, folder: Path, judged: Judged) -> None:
    from xraygpt.jobs.judge import NOTICE

    sys.stdout.write(
        f"{judged.verdicts} verdicts of the judge {kind} in {folder}, {judged.calls} calls now. "
        f"{NOTICE}\n"
    )
    if judged.unusable:
        name = folder / f"unusable_{kind}.csv"
        raise SomeUnusable(f"{len(judged.unusable)} verdicts could not be used: see {name}")


if __name__ == "__main__":
    sys.exit(run_main(main))
