"""Options of commands that may use a language model."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xraygpt.common.errors import InputError
from xraygpt.curation.llm.endpoint import PROVIDERS, Endpoint
from xraygpt.curation.llm.prices import load_price

if TYPE_CHECKING:
    from xraygpt.curation.llm.settings import RewriteSettings
    from xraygpt.curation.llm.tasks import Task


def add_model_options(step: argparse.ArgumentParser, tasks: Sequence[str] = ()) -> None:
    """Add the options of a language model.

    Args:
        step: The parser.
        tasks: What the model may write, the default first; empty if there is no choice.
    """
    from xraygpt.curation.llm.limits import Limits, RetryPolicy

    default = Endpoint()
    group = step.add_argument_group("with a language model")
    add = group.add_argument
    add("--provider", choices=PROVIDERS, default="rules", help="what rewrites the reports")
    if tasks:
        add("--task", choices=tuple(tasks), default=tasks[0], help="what to write")
    add("--model", default="", help="name of the model; for Azure, of the deployment")
    add("--base-url", default="", help="default for local: http://127.0.0.1:8000/v1")
    add("--prompt", type=Path, help="a prompt file like those in prompts/curation/")
    add("--temperature", type=_temperature, default=default.temperature, help="0 to 2, or none")
    add("--model-seed", type=int, help="seed for the endpoint; few endpoints use it")
    add("--concurrency", type=int, default=Limits().concurrency, help="maximum concurrent calls")
    add("--rpm", type=float, help="maximum requests per minute")
    add("--tpm", type=float, help="maximum tokens per minute")
    add("--timeout", type=float, default=RetryPolicy().timeout, help="seconds per call")
    add(
        "--attempts", type=int, default=RetryPolicy().max_attempts,
        help="maximum number of calls for one answer if the endpoint fails",
    )  # fmt: skip
    add("--prices", type=Path, help="YAML: model: {input: …, output: …} per million tokens")
    add("--max-usd", type=float, help="stop before the total cost exceeds this (needs --prices)")
    add("--max-tokens", type=int, help="stop before the total tokens exceed this")
    add("--dry-run", action="store_true", help="estimate tokens, time and cost; send nothing")
    add("--sample", type=int, default=200, help="number of rows that --dry-run estimates")
    add("--batch", action="store_true", help="use the Batch API: slower, often cheaper")
    add("--poll-seconds", type=float, default=60.0, help="seconds between status checks")
    add(
        "--again", nargs="+", choices=("refused", "invalid"), default=[],
        help="request rows with these results again",
    )  # fmt: skip
    add("--partial", action="store_true", help="write the folder with the answers so far")
    add(
        "--zero-retention-agreement", default="", metavar="REFERENCE",
        help="reference to your written agreement, to send credentialed data to another host",
    )  # fmt: skip


def _temperature(text: str) -> float | None:
    value = None if text.lower() == "none" else float(text)
    if value is not None and not 0 <= value <= 2:
        raise argparse.ArgumentTypeError("expected a number from 0 to 2, or none")
    return value


def settings_from(args: argparse.Namespace, task: Task) -> RewriteSettings:
    """Return the settings that the options describe.

    Args:
        args: Options of `add_model_options`.
        task: What the model writes.

    Raises:
        InputError: An option has an invalid value.
    """
    from xraygpt.curation.llm.limits import Limits, RetryPolicy
    from xraygpt.curation.llm.prompts import load_prompt
    from xraygpt.curation.llm.settings import RewriteSettings

    _check(args)
    return RewriteSettings(
        endpoint=Endpoint(
            provider=args.provider, model=args.model, base_url=args.base_url,
            temperature=args.temperature, seed=args.model_seed,
        ),
        task=task,
        prompt=load_prompt(task.name, args.prompt),
        limits=Limits(
            concurrency=args.concurrency, rpm=args.rpm, tpm=args.tpm,
            max_tokens=args.max_tokens, max_cost=args.max_usd,
        ),
        retry_policy=RetryPolicy(max_attempts=args.attempts, timeout=args.timeout),
        price=load_price(args.prices, args.model) if args.prices else None,
        agreement=args.zero_retention_agreement,
        batch=args.batch,
        poll_seconds=args.poll_seconds,
        retry_states=tuple(args.again),
        partial=args.partial,
    )  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    if not args.model:
        raise InputError(f"--provider {args.provider} needs --model, the name of the model")
    if args.max_usd is not None and args.prices is None:
        raise InputError("--max-usd needs --prices, a file with the price of the model")
    for name in ("concurrency", "attempts", "sample"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    for name in ("rpm", "tpm", "timeout", "max_usd", "max_tokens", "poll_seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be above 0 and finite")


def refuse_model_options(args: argparse.Namespace, tasks: Sequence[str] = ()) -> None:
    """Refuse options for a language model if none is used.

    Args:
        args: Options of `add_model_options`.
        tasks: As for `add_model_options`.

    Raises:
        InputError: One was given.
    """
    parser = argparse.ArgumentParser()
    add_model_options(parser, tasks)
    defaults = vars(parser.parse_args([]))
    unused = [name for name, value in defaults.items() if getattr(args, name) != value]
    if unused:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise InputError(f"{options} needs a language model: choose one with --provider")
