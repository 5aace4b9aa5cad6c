"""Raw reports and pictures -> a training folder: python -m xraygpt.curate openi ….

    openi         --reports ecgen-radiology (or the .tgz)   --images NLMCXR_png
    openi_kaggle  --reports FOLDER (the pair of CSV files)  --images FOLDER/images_normalized
    roco          --reports captions.txt (or a .csv)        --images images
    mimic         --reports mimic-cxr-reports               --images mimic-cxr-jpg
    own           --reports table.csv (docs/data.md)        --images FOLDER

By itself it works by rules: no key, no network, no text leaves this machine. Priors, masks and
views go, findings stay; a report whose findings, sides or numbers would change is held back and
named. --provider local, openai or azure has a language model rewrite; docs/curation.md.

Single steps: filter (reports that pass, as JSON lines), images (their pictures), audit (a page of
random rows, source beside result, for a person to mark).

Ends with 0: every report was decided on. 3: the folder is written, but a file could not be read, a
picture is missing, or the model gave no usable answer to some; held_back.csv names them. 1: the
endpoint or the budget stopped it. 2: a mistake in the command or the data. 130, 143: interrupted.
"""

from __future__ import annotations

import argparse
import math
import sys
import traceback
from pathlib import Path
from typing import Any

from xraygpt.common.checks import SettingsError
from xraygpt.common.cli import run_main
from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.curation.folder import HELD_BACK, TROUBLE
from xraygpt.curation.llm.endpoint import PROVIDERS, Endpoint
from xraygpt.curation.llm.prices import load_price
from xraygpt.curation.llm.privacy import check_privacy
from xraygpt.curation.select import (
    Filters,
    corpus_named,
    select_pictures,
    select_reports,
    write_left_out,
    write_reports,
)
from xraygpt.curation.sources import CORPORA


class SomeLeft(XrayGPTError):
    """The folder is written; some reports a file or an endpoint failed."""

    exit_code = 3


class Fault(XrayGPTError):
    """A fault of this program, told without what it was working on."""


def main() -> None:
    """Read the command line and do the step it names.

    Raises:
        Fault: Anything unforeseen. A trace might show report text, so only its place is said.
    """
    given = _parser().parse_args()
    place = ""
    try:
        given.run(given)
        return
    except (XrayGPTError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "xraygpt" in f.filename] or list(frames)
        place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
    raise Fault(
        f"a fault of xraygpt, please report it: {place}. Its message is not shown, as it might "
        "hold report text; what was answered is kept"
    )


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default where there is one to name."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default in (None, False, "", [])
        return action.help if nothing else super()._get_help_string(action)


class _Step(argparse.ArgumentParser):
    """A step's arguments: options in full, help with their defaults."""

    def __init__(self, **told: Any) -> None:
        super().__init__(**told, formatter_class=_Help, allow_abbrev=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xraygpt.curate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(
        required=True,
        metavar="CORPUS or STEP",
        parser_class=_Step,
    )
    for name in CORPORA:
        step = steps.add_parser(name, help=f"{name} into a training folder")
        step.set_defaults(run=_curate, corpus=name)
        _add_source(step, out="the training folder")
        _add_filters(step)
        _add_model(step)
    step = steps.add_parser("filter", help="reports that pass the filters, as JSON lines")
    step.set_defaults(run=_filter)
    step.add_argument("corpus", choices=CORPORA)
    _add_source(step, images=False, out="the file, ending in .jsonl")
    _add_filters(step)
    step = steps.add_parser("images", help="pictures of reports that pass, checked, in one folder")
    step.set_defaults(run=_images)
    step.add_argument("corpus", choices=CORPORA)
    _add_source(step, out="the folder")
    _add_filters(step)
    step = steps.add_parser("audit", help="random rows, source beside result, for a person")
    step.set_defaults(run=_audit)
    step.add_argument("corpus", choices=CORPORA)
    _add_source(step, images=False, out="the training folder to look into")
    step.add_argument("--rows", type=int, default=30)
    step.add_argument("--seed", type=int, default=0)
    step.add_argument("--marks", type=Path, help="a marked audit.csv: print how many rows are good")
    return parser


def _add_source(step: argparse.ArgumentParser, *, out: str, images: bool = True) -> None:
    add = step.add_argument
    add("--reports", type=Path, required=True, help="as downloaded, or filter's .jsonl")
    if images:
        add("--images", type=Path, required=True, help="folder of the pictures")
        add("--copy", action="store_true", help="copy pictures, do not link them")
    add("--out", type=Path, required=True, help=out)


def _add_filters(step: argparse.ArgumentParser) -> None:
    default = Filters()
    step.add_argument(
        "--min-findings-words", type=int, default=default.min_findings_words, help="fewest"
    )
    step.add_argument(
        "--min-impression-words", type=int, default=default.min_impression_words, help="fewest"
    )
    step.add_argument("--views", choices=("frontal", "all"), default=default.views, help="which")
    step.add_argument(
        "--modality", default=argparse.SUPPRESS, help="of captions: xray (ROCO's own), ct, …, any"
    )
    step.add_argument(
        "--region", choices=("chest", "any"), default=default.region, help="of captions"
    )


def _add_model(step: argparse.ArgumentParser) -> None:
    from xraygpt.curation.llm.limits import Limits, RetryPolicy
    from xraygpt.curation.llm.tasks import TASKS

    default = Endpoint()
    group = step.add_argument_group("with a language model")
    add = group.add_argument
    add("--provider", choices=PROVIDERS, default="rules", help="rules needs no model")
    add("--task", choices=tuple(TASKS), default="summarise", help="what to write")
    add("--model", default="", help="as the endpoint calls it; Azure: the deployment")
    add("--base-url", default="", help="local: http://127.0.0.1:8000/v1 unless said otherwise")
    add("--prompt", type=Path, help="a file like those in prompts/curation/")
    add("--temperature", type=_temperature, default=default.temperature, help="0 to 2, or none")
    add("--model-seed", type=int, dest="model_seed", help="sent along; few endpoints honour it")
    add("--concurrency", type=int, default=Limits().concurrency, help="most calls at once")
    add("--rpm", type=float, help="most requests a minute")
    add("--tpm", type=float, help="most tokens a minute")
    add("--timeout", type=float, default=RetryPolicy().timeout, help="seconds for one call")
    add(
        "--attempts",
        type=int,
        default=RetryPolicy().max_attempts,
        help="most calls for one answer when the endpoint errs",
    )
    add("--prices", type=Path, help="YAML: model: {input: …, output: …} for a million tokens")
    add("--max-usd", type=float, help="stop before the folder has cost more (needs --prices)")
    add("--max-tokens", type=int, help="stop before the folder has taken more")
    add("--dry-run", action="store_true", help="count tokens, time and money; send nothing")
    add("--sample", type=int, default=200, help="rows that --dry-run counts")
    add("--batch", action="store_true", help="by the Batch API: slower, often cheaper")
    add("--poll-seconds", type=float, default=60.0, help="between two looks at a batch")
    add("--again", nargs="+", choices=("refused", "invalid"), default=[], help="ask these anew")
    add("--partial", action="store_true", help="write the folder of what is there")
    add(
        "--zero-retention-agreement", default="", metavar="REFERENCE",
        help="your written agreement, for credentialed data on another host",
    )  # fmt: skip


def _temperature(text: str) -> float | None:
    value = None if text.lower() == "none" else float(text)
    if value is not None and not 0 <= value <= 2:
        raise argparse.ArgumentTypeError("0 to 2, or none")
    return value


def _filters(given: argparse.Namespace) -> Filters:
    try:
        return Filters(
            min_findings_words=given.min_findings_words,
            min_impression_words=given.min_impression_words,
            views=given.views,
            modality=getattr(given, "modality", ""),
            region=given.region,
        )
    except SettingsError as error:
        raise InputError(error.as_options()) from None


def _curate(given: argparse.Namespace) -> None:
    from xraygpt.curation.pipeline import curate

    filters = _filters(given)
    how = None if given.provider == "rules" else _rewriting(given)
    if how is None:
        _refuse_model_options(given)
    if given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out} is a file; name a folder")
    if given.dry_run:
        _dry_run(given, filters, how)
        return
    made = curate(
        given.corpus, given.reports, given.images, given.out, filters, rewriting=how,
        copy=given.copy,
    )  # fmt: skip
    manifest, rate = made.manifest, made.manifest["acceptance"]
    left_out = manifest["left_out"]
    steps = " > ".join(f"{count} {name}" for name, count in manifest["left_after"].items())
    say(
        f"{steps} > {manifest['accepted']} accepted ({rate['rate']:.1%}, {rate['low']:.1%} to "
        f"{rate['high']:.1%})"
    )
    say("left out: " + (", ".join(f"{n} {s}" for s, n in left_out.items()) or "nothing"))
    say(
        f"{given.out}: {manifest['pictures']} pictures, "
        f"{manifest['pictures_of_published_test_split']} of the published test split"
    )
    if how is not None:
        money = f", {made.usage.cost:.2f} by the price file" if how.price else ""
        say(
            f"{made.calls} calls now; over all runs {made.usage.tokens_in:,} tokens read and "
            f"{made.usage.tokens_out:,} written{money}"
        )
    trouble = {stage: left_out[stage] for stage in TROUBLE if left_out.get(stage)}
    if trouble:
        named = ", ".join(f"{count} {stage}" for stage, count in trouble.items())
        raise SomeLeft(f"{named}: see {given.out / HELD_BACK}")


def _refuse_model_options(given: argparse.Namespace) -> None:
    """Options of a language model without one are a mistake, not to be passed over."""
    plain = argparse.ArgumentParser()
    _add_model(plain)
    default = vars(plain.parse_args([]))
    idle = [name for name, value in default.items() if getattr(given, name) != value]
    if idle:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise InputError(f"{named} is for a language model: name one with --provider")


def say(line: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{line}\n")


def _rewriting(given: argparse.Namespace) -> Any:
    from xraygpt.curation.llm.limits import Limits, RetryPolicy
    from xraygpt.curation.llm.prompts import load_prompt
    from xraygpt.curation.llm.settings import RewriteSettings
    from xraygpt.curation.llm.tasks import TASKS

    if not given.model:
        raise InputError(f"--provider {given.provider} needs --model, as the endpoint calls it")
    if given.max_usd is not None and given.prices is None:
        raise InputError("--max-usd needs --prices, a file with the price of the model")
    low = {
        "--concurrency": given.concurrency,
        "--attempts": given.attempts,
        "--sample": given.sample,
    }
    for name, value in low.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1")
    for name in ("rpm", "tpm", "timeout", "max_usd", "max_tokens", "poll_seconds"):
        value = getattr(given, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be above 0 and finite")
    limits = Limits(
        concurrency=given.concurrency, rpm=given.rpm, tpm=given.tpm,
        max_tokens=given.max_tokens, max_cost=given.max_usd,
    )  # fmt: skip
    return RewriteSettings(
        endpoint=Endpoint(
            provider=given.provider, model=given.model, base_url=given.base_url,
            temperature=given.temperature, seed=given.model_seed,
        ),
        task=TASKS[given.task],
        prompt=load_prompt(given.task, given.prompt),
        limits=limits,
        retry_policy=RetryPolicy(max_attempts=given.attempts, timeout=given.timeout),
        price=load_price(given.prices, given.model) if given.prices else None,
        agreement=given.zero_retention_agreement,
        batch=given.batch,
        poll_seconds=given.poll_seconds,
        retry_states=tuple(given.again),
        partial=given.partial,
    )  # fmt: skip


def _dry_run(given: argparse.Namespace, filters: Filters, how: Any) -> None:
    from xraygpt.curation.llm.cost import estimate_run
    from xraygpt.curation.pipeline import items_of

    decision = check_privacy(corpus_named(given.corpus), how.endpoint, how.agreement, how.batch)
    selection = select_reports(given.corpus, given.reports, filters)
    select_pictures(selection, given.images, filters)
    items = [item for item, _ in items_of(selection, how)]
    say(str(estimate_run(items, how, given.out, given.sample)))
    say(f"  privacy  would be {decision}")


def _filter(given: argparse.Namespace) -> None:
    if given.out.suffix != ".jsonl":
        raise InputError(f"--out {given.out}: the file's name must end in .jsonl")
    selection = select_reports(given.corpus, given.reports, _filters(given))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_reports(selection, given.out)
    left_out = given.out.with_suffix(".left_out.csv")
    write_left_out(selection.left_out, left_out)
    say(" > ".join(f"{count} {name}" for name, count in selection.steps))
    say(f"{given.out}: {len(selection.reports)} reports; {left_out} names the others")
    unread = sum(row.stage == "unreadable" for row in selection.left_out)
    if unread:
        raise SomeLeft(f"{unread} unreadable: see {left_out}")


def _images(given: argparse.Namespace) -> None:
    from xraygpt.curation.folder import bring_pictures

    selection = select_reports(given.corpus, given.reports, _filters(given))
    select_pictures(selection, given.images, _filters(given))
    pictures = [p for found in selection.pictures.values() for p in found]
    bring_pictures(pictures, given.out / "image", given.copy)
    write_left_out(selection.left_out, given.out / HELD_BACK)
    say(" > ".join(f"{count} {name}" for name, count in selection.steps))
    say(f"{given.out / 'image'}: {len(pictures)} pictures; {HELD_BACK} names what is left out")
    trouble = sum(row.stage in TROUBLE for row in selection.left_out)
    if trouble:
        raise SomeLeft(f"{trouble} unreadable or without a picture: see {given.out / HELD_BACK}")


def _audit(given: argparse.Namespace) -> None:
    from xraygpt.curation.audit import audit, read_marks

    if given.rows < 1:
        raise InputError("--rows must be at least 1")
    if given.marks:
        inside = given.out / given.marks.name  # as the page and `audit` leave it
        say(read_marks(given.marks if given.marks.exists() else inside))
        return
    everything = Filters(min_findings_words=0, min_impression_words=0, modality="any")
    selection = select_reports(given.corpus, given.reports, everything)
    say(audit(selection, given.out, given.rows, given.seed))


if __name__ == "__main__":
    sys.exit(run_main(main))
