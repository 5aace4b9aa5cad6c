"""A raw corpus -> the training folder, by rules or with a language model.

Every report is counted somewhere: unreadable, left out by a named filter, without a picture, held
back by a check, refused, failed, or accepted.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.common.logging import progress
from xraygpt.curation.checks import problems
from xraygpt.curation.folder import Texts, check_free, item_name, names_of, write_folder
from xraygpt.curation.llm.calls import run_calls
from xraygpt.curation.llm.items import Item, item_key
from xraygpt.curation.llm.ledger import Ledger
from xraygpt.curation.llm.ledger_rows import DONE, FINAL, Row, Usage
from xraygpt.curation.llm.privacy import check_privacy
from xraygpt.curation.llm.run_context import RunContext
from xraygpt.curation.llm.settings import RewriteSettings
from xraygpt.curation.llm.stopping import RunResult
from xraygpt.curation.rules import clean, resolve
from xraygpt.curation.select import (
    Filters,
    LeftOut,
    Selection,
    corpus_named,
    select_pictures,
    select_reports,
)

log = logging.getLogger(__name__)


class Unfinished(XrayGPTError):
    """The run stopped before each row had its final state; what was answered is kept."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Curated:
    """What a run made.

    Attributes:
        manifest: As written.
        usage: Over all runs on the folder; nothing for rules.
        calls: Sent in this run.
    """

    manifest: dict[str, Any]
    usage: Usage = field(default_factory=Usage)
    calls: int = 0


def curate(
    corpus_name: str,
    raw: Path,
    images: Path,
    out: Path,
    filters: Filters,
    *,
    rewriting: RewriteSettings | None = None,
    copy: bool = False,
) -> Curated:
    """Make the training folder of a corpus.

    Args:
        corpus_name: A key of `CORPORA`.
        raw: Its reports, as downloaded, or as the filter wrote them (`.jsonl`).
        images: Folder of its pictures.
        out: Gets the training folder, and the ledger of a language model; goes on with what is
            there.
        filters: Which reports and pictures.
        rewriting: None for rules.
        copy: Copy pictures instead of linking them.

    Raises:
        InputError: The folder is taken, or the texts may not be sent to that endpoint.
        DataError: Nothing was accepted, or the corpus is not there.
        Unfinished: A language model was stopped on its way.
    """
    how = rewriting
    decision = check_privacy(
        corpus_named(corpus_name), how.endpoint if how else None, how.agreement if how else "",
        bool(how and how.batch),
    )  # fmt: skip
    if how is not None:
        # Report a missing key before any work.
        how.endpoint.create_sdk_client(how.retry_policy.timeout)
    check_free(out, corpus_name, how.task.name if how else "")
    selection = select_reports(corpus_name, raw, filters)
    if how is None:
        select_pictures(selection, images, filters)
        texts = by_rules(selection)
        texts.facts["privacy"] = decision
        return Curated(write_folder(out, selection, texts, filters, raw, copy))
    with Ledger(out) as ledger:
        known = ledger.pictures()
        select_pictures(selection, images, filters, known)
        ledger.add_pictures(known)
        names_of([p for found in selection.pictures.values() for p in found])
        result, texts = by_model(selection, how, ledger)
        usage = ledger.total_usage()
    texts.facts["privacy"] = decision
    left = sum(row.stage == "todo" for row in texts.left_out)
    if left and not how.partial:
        done = texts.asked - sum(row.stage in ("todo", "failed") for row in texts.left_out)
        why = (result.stop_reason or "not finished").rstrip(".")
        raise Unfinished(
            f"{why}. {done} of {texts.asked} have an answer, kept in {ledger.path}; the same "
            "command goes on, --partial writes the folder of these",
            result.exit_code or 1,
        )
    manifest = write_folder(out, selection, texts, filters, raw, copy)
    return Curated(manifest, usage, result.calls)


def by_rules(selection: Selection) -> Texts:
    """Rewrite by `rules.clean`; a text that fails a check is held back."""
    texts = Texts()
    removed: Counter[str] = Counter()
    changed = 0
    for report in progress(selection.reports, desc="curating", unit="report"):
        captions = not selection.corpus.has_sections
        done = clean([report.sections[name] for name in selection.sections()], priors=captions)
        removed.update(done.removed)
        changed += done.changed
        texts.asked += 1
        why = problems(resolve(selection.text(report)), done.text, priors=captions)
        if why:
            out = LeftOut(report.source_id, report.where, "check", "; ".join(why))
            texts.left_out.append(out)
        else:
            texts.by_item[item_name(report, None)] = done.text
    texts.facts = {
        "provider": "rules",
        "sentences_removed": dict(removed),
        "sentences_changed": changed,
    }
    return texts


def items_of(selection: Selection, how: RewriteSettings) -> list[tuple[Item, str]]:
    """What is asked about, with the place of each source."""
    found = []
    for report in selection.reports:
        sections = {name: resolve(report.sections[name]) for name in selection.sections()}
        for picture in selection.pictures[report.source_id] if how.task.uses_picture else [None]:
            name = item_name(report, picture)
            sha256 = picture.sha256 if picture else ""
            key = item_key(how.endpoint, how.task, how.prompt, name, sections, sha256)
            path = picture.path if picture else None
            item = Item(key, name, sections, " ".join(sections.values()), path)
            found.append((item, report.where))
    return found


def by_model(selection: Selection, how: RewriteSettings, ledger: Ledger) -> tuple[RunResult, Texts]:
    """Rewrite by a language model; what the ledger knows is not asked again."""
    placed = items_of(selection, how)
    items = [item for item, _ in placed]
    if items:
        how.prompt.check_templates(items[0].sections)
    wanted = [(item.key, item.source_id) for item in items]
    left = set(ledger.prepare(wanted, how.prompt.repair_sha256, how.retry_states))
    if len(left) < len(items):
        log.info("%d of %d answered before", len(items) - len(left), len(items))
    todo = [item for item in items if item.key in left]
    result = RunResult()
    if not how.batch and ledger.open_batches():
        raise InputError(
            f"{ledger.path} has batches at the endpoint whose answers are paid for and not in yet: "
            "add --batch to collect them"
        )
    if todo or how.batch:
        context = RunContext(ledger, how)
        if how.batch:
            from xraygpt.curation.llm.batch import run_batches

            result = run_batches(context, todo)
        else:
            result = run_calls(context, todo)
    rows = ledger.rows([item.key for item in items])
    texts = Texts(asked=len(items))
    for item, where in placed:
        row = rows[item.key]
        if row.state == DONE:
            texts.by_item[item.source_id] = _payload(row)
        else:
            stage = row.state if row.state in (*FINAL, "failed") else "todo"
            texts.left_out.append(LeftOut(item.source_id, where, stage, row.reason or "not asked"))
    texts.facts = _facts(how, [rows[item.key] for item in items])
    return result, texts


def _payload(row: Row) -> Any:
    """Text or turns of an accepted answer."""
    (value,) = json.loads(row.answer or "{}").values()
    return value


def _facts(how: RewriteSettings, rows: list[Row]) -> dict[str, Any]:
    done = [row for row in rows if row.state == DONE]
    return {
        "provider": how.endpoint.provider,
        "model": how.endpoint.model,
        "decoding": how.endpoint.decoding(how.task.output_tokens),
        "task": how.task.name,
        "prompt": {
            "version": how.prompt.version,
            "sha256": how.prompt.sha256,
            "repair_sha256": how.prompt.repair_sha256,
        },
        "accepted_after_repair": sum(bool(row.repair) for row in done),
        "tokens": {
            "read": sum(row.tokens_in for row in rows),
            "written": sum(row.tokens_out for row in rows),
        },
    }
