"""From a raw corpus to the training folder, by rules or with a language model.

Every report is counted as unreadable, excluded by a named filter, without a picture, held back by a
check, refused, failed, or accepted.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.common.logging import progress
from xraygpt.curation.checks import rejection_reasons
from xraygpt.curation.files import LeftOut
from xraygpt.curation.folder import (
    RewrittenTexts,
    check_output_folder,
    item_name,
    picture_names,
    write_folder,
)
from xraygpt.curation.llm.calls import run_calls
from xraygpt.curation.llm.items import Item, item_key
from xraygpt.curation.llm.ledger import Ledger
from xraygpt.curation.llm.ledger_rows import DONE, FAILED, FINAL, Row, Usage
from xraygpt.curation.llm.privacy import check_privacy
from xraygpt.curation.llm.run_context import RunContext
from xraygpt.curation.llm.settings import RewriteSettings
from xraygpt.curation.llm.stopping import RunResult
from xraygpt.curation.pictures import select_pictures
from xraygpt.curation.rules import clean, resolve_masks
from xraygpt.curation.select import Filters, Selection, get_corpus, select_reports

log = logging.getLogger(__name__)


class Unfinished(XrayGPTError):
    """The run stopped before every row had its final state; all answers so far are saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class CurationResult:
    """The result of a run.

    Attributes:
        manifest: The manifest as written.
        usage: The language model's usage over all runs on the folder.
        calls: Number of calls in this run.
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
    settings: RewriteSettings | None = None,
    copy: bool = False,
) -> CurationResult:
    """Make the training folder for a corpus.

    Args:
        corpus_name: A key of `CORPORA`.
        raw: Its reports as downloaded, or a `.jsonl` file written by `files.write_reports`.
        images: The folder that contains its pictures.
        out: The training folder, which also contains the ledger if a language model is used; an
            earlier run in it is continued.
        filters: Which reports and pictures to select.
        settings: The settings of the language model; None for rules.
        copy: Whether to copy pictures instead of hard-linking them.

    Raises:
        InputError: The folder contains another corpus, or the texts may not be sent to the
            endpoint.
        DataError: The corpus is missing, or no text was accepted.
        Unfinished: The run with the language model was stopped.
    """
    privacy = _privacy_decision(corpus_name, settings)
    if settings is not None:
        # Report a missing key before any work.
        settings.endpoint.create_sdk_client(settings.retry_policy.timeout)
    check_output_folder(out, corpus_name, settings.task.name if settings else "")
    selection = select_reports(corpus_name, raw, filters)
    usage, calls = Usage(), 0
    if settings is None:
        select_pictures(selection, images, filters)
        texts = rewrite_by_rules(selection)
    else:
        with Ledger(out) as ledger:
            _select_pictures(selection, images, filters, ledger)
            result, texts = rewrite_by_model(selection, settings, ledger)
            usage, calls = ledger.total_usage(), result.calls
        if not settings.partial:
            _check_finished(texts, result, ledger)
    texts.facts["privacy"] = privacy
    manifest = write_folder(out, selection, texts, filters, raw, copy)
    return CurationResult(manifest, usage, calls)


def _privacy_decision(corpus_name: str, settings: RewriteSettings | None) -> str:
    corpus = get_corpus(corpus_name)
    if settings is None:
        return check_privacy(corpus, None, "", False)
    return check_privacy(corpus, settings.endpoint, settings.agreement, settings.batch)


def _select_pictures(selection: Selection, images: Path, filters: Filters, ledger: Ledger) -> None:
    """Select pictures, and save in the ledger which files have been read."""
    known = ledger.pictures()
    select_pictures(selection, images, filters, known)
    ledger.add_pictures(known)
    picture_names(selection.all_pictures())  # reports repeated names before any call


def _check_finished(texts: RewrittenTexts, result: RunResult, ledger: Ledger) -> None:
    """Check that every row has its final state.

    Raises:
        Unfinished: Some rows have no final state.
    """
    stages = Counter(row.stage for row in texts.left_out)
    if not stages["todo"]:
        return
    answered = texts.attempted - stages["todo"] - stages["failed"]
    reason = (result.stop_reason or "not finished").rstrip(".")
    raise Unfinished(
        f"{reason}. {answered} of {texts.attempted} have an answer, saved in {ledger.path}; run "
        "the same command again to continue, or add --partial to write the folder with these",
        result.exit_code or 1,
    )


def rewrite_by_rules(selection: Selection) -> RewrittenTexts:
    """Rewrite reports with `rules.clean`, and hold back each text that fails a check."""
    texts = RewrittenTexts(attempted=len(selection.reports))
    removed: Counter[str] = Counter()
    changed = 0
    for report in progress(selection.reports, desc="curating", unit="report"):
        keep_priors = not selection.corpus.has_sections
        sections = [report.sections[name] for name in selection.sections()]
        cleaned = clean(sections, priors=keep_priors)
        removed.update(cleaned.removed)
        changed += cleaned.changed
        source = resolve_masks(selection.text(report))
        reasons = rejection_reasons(source, cleaned.text, priors=keep_priors)
        if reasons:
            left_out = LeftOut(report.source_id, report.where, "check", "; ".join(reasons))
            texts.left_out.append(left_out)
        else:
            texts.by_item[item_name(report, None)] = cleaned.text
    texts.facts = {
        "provider": "rules",
        "sentences_removed": dict(removed),
        "sentences_changed": changed,
    }
    return texts


def build_items(selection: Selection, settings: RewriteSettings) -> list[tuple[Item, str]]:
    """Build the items to rewrite, each paired with the location of its report."""
    items = []
    for report in selection.reports:
        sections = {name: resolve_masks(report.sections[name]) for name in selection.sections()}
        pictures = selection.pictures[report.source_id] if settings.task.uses_picture else [None]
        for picture in pictures:
            name = item_name(report, picture)
            sha256 = picture.sha256 if picture else ""
            key = item_key(
                settings.endpoint, settings.task, settings.prompt, name, sections, sha256
            )
            path = picture.path if picture else None
            item = Item(key, name, sections, " ".join(sections.values()), path)
            items.append((item, report.where))
    return items


def rewrite_by_model(
    selection: Selection, settings: RewriteSettings, ledger: Ledger
) -> tuple[RunResult, RewrittenTexts]:
    """Rewrite with a language model, without requesting answers in the ledger again."""
    located_items = build_items(selection, settings)
    items = [item for item, _ in located_items]
    result = request_answers(items, settings, ledger)
    rows = ledger.rows([item.key for item in items])
    facts = _model_facts(settings, [rows[item.key] for item in items])
    texts = RewrittenTexts(attempted=len(items), facts=facts)
    for item, where in located_items:
        row = rows[item.key]
        if row.state == DONE:
            texts.by_item[item.source_id] = _answer_value(row)
        else:
            stage = row.state if row.state in (*FINAL, FAILED) else "todo"
            left_out = LeftOut(item.source_id, where, stage, row.reason or "not asked")
            texts.left_out.append(left_out)
    return result, texts


def request_answers(items: Sequence[Item], settings: RewriteSettings, ledger: Ledger) -> RunResult:
    """Request the answers that are missing from the ledger.

    Raises:
        InputError: The prompt cannot be rendered, or batches have not been collected.
    """
    if items:
        settings.prompt.check_templates(items[0].sections)
    ledger_rows = [(item.key, item.source_id) for item in items]
    remaining = set(
        ledger.prepare(ledger_rows, settings.prompt.repair_sha256, settings.retry_states)
    )
    if len(remaining) < len(items):
        log.info("%d of %d items were answered before", len(items) - len(remaining), len(items))
    todo = [item for item in items if item.key in remaining]
    if settings.batch:
        from xraygpt.curation.llm.batch import run_batches

        return run_batches(RunContext(ledger, settings), todo)
    if ledger.open_batches():
        raise InputError(
            f"{ledger.path} lists batches at the endpoint whose answers are paid for but not "
            "collected: add --batch to collect them"
        )
    return run_calls(RunContext(ledger, settings), todo) if todo else RunResult()


def _answer_value(row: Row) -> Any:
    """Return the text or the turns in an accepted answer."""
    (value,) = json.loads(row.answer or "{}").values()
    return value


def _model_facts(settings: RewriteSettings, rows: Sequence[Row]) -> dict[str, Any]:
    endpoint, prompt = settings.endpoint, settings.prompt
    return {
        "provider": endpoint.provider,
        "model": endpoint.model,
        "decoding": endpoint.decoding(settings.task.output_tokens),
        "task": settings.task.name,
        "prompt": {
            "version": prompt.version,
            "sha256": prompt.sha256,
            "repair_sha256": prompt.repair_sha256,
        },
        "accepted_after_repair": sum(bool(row.repair) for row in rows if row.state == DONE),
        "tokens": {
            "read": sum(row.tokens_in for row in rows),
            "written": sum(row.tokens_out for row in rows),
        },
    }
