"""Filter reports and write conversations for an instruction set, by rules or a language model.

    python -m xraygpt.prepare_conversations filter   --collection mimic_cxr --root IN --out OUT
    python -m xraygpt.prepare_conversations converse --collection ms_cxr --grounded --out OUT

filter keeps what can be seen on this one image: no earlier study, no history, no names of views.
converse writes questions and answers about an image from its report, labels, view, sex and, with
--grounded, boxes. Every text is checked: its form, its findings, its boxes; what fails is repaired
once, or held back and listed in held_back.csv.

By default, texts are written by rules: this needs no key and no network. With --provider local,
openai or azure, a language model writes them. Texts of credentialed collections are sent to another
host only with --zero-retention-agreement. See docs/instructions_llm.md.

Exit codes: 0: everything is written. 3: written, but some texts were held back. 1: the endpoint or
the budget stopped the run. 2: a mistake in the command or the data. 130, 143: interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from xraygpt.common.cli import add_imports, add_overrides, at_least, import_plugins, run_main
from xraygpt.common.errors import InputError
from xraygpt.curation.model_options import add_model_options, refuse_model_options, settings_from


def main() -> None:
    """Parse the command line and run a step."""
    parser = argparse.ArgumentParser(
        prog="python -m xraygpt.prepare_conversations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, text in (("filter", "filter reports"), ("converse", "write conversations")):
        step = steps.add_parser(name, help=text)
        _add_options(step, converse=name == "converse")
    args = parser.parse_args()
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out} is a file; name a folder")
    _run(args)


def _add_options(step: argparse.ArgumentParser, *, converse: bool) -> None:
    add = step.add_argument
    add("--collection", required=True, help="kind of the collection, such as mimic_cxr")
    add("--root", type=Path, help="its folder; default: in the folder $DATA_DIR")
    add("--out", type=Path, required=True, help="folder for the results")
    add("--split", nargs="+", choices=("train", "val", "test"), default=["train"])
    add("--limit", type=at_least(1), help="maximum number of texts")
    if converse:
        add("--grounded", "--grounding", action="store_true", help="ask for places, with boxes")
        add("--all-views", action="store_true", help="also lateral images")
        add("--seed", type=int, default=0, help="seed of the rules; default: 0")
    add_overrides(step)
    add_imports(step)
    add_model_options(step)


def _run(args: argparse.Namespace) -> None:
    from xraygpt.instructions.stages import CONVERSE, FILTER
    from xraygpt.jobs.conversations import HELD_BACK, Request, SomeHeldBack, estimate, prepare

    import_plugins(args.imports)
    collection = _build_collection(args)
    request = Request(
        args.step, tuple(args.split), not getattr(args, "all_views", False),
        getattr(args, "grounded", False), args.limit, getattr(args, "seed", 0),
    )  # fmt: skip
    settings = None
    if args.provider == "rules":
        refuse_model_options(args)
    else:
        settings = settings_from(args, FILTER if args.step == "filter" else CONVERSE)
    if settings is not None and args.dry_run:
        text = estimate(collection, args.out, request, settings, args.sample)
        sys.stdout.write(f"{text}\n")
        return
    written = prepare(collection, args.out, request, settings)
    sys.stdout.write(
        f"{args.out}: {len(written.rows):,} written, {len(written.held_back):,} held back. "
        "Research use only.\n"
    )
    if written.held_back:
        count = len(written.held_back)
        raise SomeHeldBack(f"{count} texts were held back: see {args.out / HELD_BACK}")


def _build_collection(args: argparse.Namespace) -> Any:
    """Return the collection; `--options` sets its further keys."""
    from omegaconf import OmegaConf

    from xraygpt.common.config import from_tree
    from xraygpt.common.registry import COLLECTIONS, did_you_mean
    from xraygpt.instructions.collections.base import Collection

    if args.collection not in COLLECTIONS:
        hint = did_you_mean(args.collection, COLLECTIONS)
        raise InputError(f"--collection {args.collection}: there is no such collection{hint}")
    tree: dict[str, Any] = {"collection": args.collection}
    if args.root is not None:
        tree["root"] = str(args.root)
    options = OmegaConf.to_container(OmegaConf.from_dotlist(args.options))
    assert isinstance(options, dict)
    config = from_tree(Collection.Config, {**tree, **options}, "--options")
    return config.build()


if __name__ == "__main__":
    sys.exit(run_main(main))
