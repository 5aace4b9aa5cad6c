"""The work behind `python -m xraygpt.prepare_conversations`."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.errors import XrayGPTError
from xraygpt.common.logging import progress
from xraygpt.curation.llm.cost import estimate_run
from xraygpt.curation.llm.items import Item, item_key
from xraygpt.curation.llm.ledger import Ledger
from xraygpt.curation.llm.ledger_rows import DONE
from xraygpt.curation.llm.privacy import Licensed, check_privacy
from xraygpt.curation.llm.settings import RewriteSettings
from xraygpt.curation.pipeline import Unfinished, request_answers
from xraygpt.curation.rules import resolve_masks
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import ImageRecord, Split
from xraygpt.instructions.stages import (
    ROUNDS,
    converse_by_rules,
    filter_by_rules,
    notes,
)
from xraygpt.instructions.tables import Tables
from xraygpt.instructions.tasks import one_line

log = logging.getLogger(__name__)

REPORTS, CONVERSATIONS = "filtered_reports.jsonl", "conversations.jsonl"
HELD_BACK, MANIFEST = "held_back.csv", "manifest.json"
Step = Literal["filter", "converse"]


class SomeHeldBack(XrayGPTError):
    """The file is written, but some texts failed the checks or got no answer."""

    exit_code = 3


@dataclass(frozen=True)
class Request:
    """What is written.

    Attributes:
        step: Filter reports, or write conversations.
        splits: Splits of the collection.
        frontal: Whether only frontal images are used for conversations.
        grounded: Whether conversations have boxes.
        limit: Maximum number of texts; None for all.
        seed: Seeds the choices of rules.
    """

    step: Step
    splits: tuple[Split, ...] = ("train",)
    frontal: bool = True
    grounded: bool = False
    limit: int | None = None
    seed: int = 0

    @property
    def kind(self) -> str:
        """Kind of the conversations."""
        return "grounding" if self.grounded else "standard"


@dataclass
class Written:
    """The result of a run.

    Attributes:
        rows: Rows of the file.
        held_back: Name and reason of each text that is not in it.
        calls: Number of calls to the model.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    held_back: list[tuple[str, str]] = field(default_factory=list)
    calls: int = 0


def prepare(
    collection: Collection, out: Path, request: Request, settings: RewriteSettings | None
) -> Written:
    """Write filtered reports or conversations of a collection.

    Args:
        collection: The collection.
        out: Folder for the file, the ledger and the list of what was held back; an earlier run is
            continued.
        request: What to write.
        settings: The language model; None for rules.

    Raises:
        InputError: The texts may not be sent to the endpoint.
        DataError: A file of the collection is missing or damaged.
        Unfinished: The run with the language model was stopped.
    """
    privacy = privacy_decision(collection, settings)
    out.mkdir(parents=True, exist_ok=True)
    with Tables(collection.database(out / "work"), read_only=True) as tables:
        records = list(_records(collection, tables, request))
    if settings is None:
        written = _by_rules(records, request)
    else:
        written = _by_model(records, out, request, settings)
    _write(out, collection, request, settings, written, privacy)
    return written


def privacy_decision(collection: Collection, settings: RewriteSettings | None) -> str:
    """Check that the texts of a collection may be sent to the endpoint.

    Raises:
        InputError: They may not.
    """
    access = "credentialed" if collection.credentialed else "public"
    licensed = Licensed(collection.title, access)
    if settings is None:
        return check_privacy(licensed, None, "", False)
    return check_privacy(licensed, settings.endpoint, settings.agreement, settings.batch)


def estimate(
    collection: Collection, out: Path, request: Request, settings: RewriteSettings, sample: int
) -> str:
    """Return the estimated tokens, time and cost, without any call."""
    privacy = privacy_decision(collection, settings)
    out.mkdir(parents=True, exist_ok=True)
    with Tables(collection.database(out / "work"), read_only=True) as tables:
        records = list(_records(collection, tables, request))
    items = [_item(record, request, settings) for record in records]
    return f"{estimate_run(items, settings, out, sample)}\n  privacy  would be {privacy}"


def _records(collection: Collection, tables: Tables, request: Request) -> Iterator[ImageRecord]:
    """Yield the images with something to write about: one of each study, or each image."""
    count = 0
    studies: set[str] = set()
    for image in collection.images(tables):
        if image.split not in request.splits:
            continue
        if request.step == "converse" and request.frontal and image.view == "LATERAL":
            continue
        if request.step == "filter" and image.study_id in studies:
            continue
        record = collection.record(tables, image)
        if request.step == "filter":
            if not record.report:
                continue
            studies.add(image.study_id)
        elif (
            request.grounded
            and not any(each.boxes for each in (*record.phrases, *record.findings, *record.regions))
        ) or not (record.report or record.labels or record.healthy):
            continue
        yield record
        count += 1
        if count == request.limit:
            return


def _name(record: ImageRecord, request: Request) -> str:
    return record.image.study_id if request.step == "filter" else record.image.image_id


def _row(name: str, request: Request, value: Any) -> dict[str, Any]:
    """Return a row of the file.

    Args:
        name: The study or image.
        request: What is written.
        value: The filtered text, or pairs of question and answer.
    """
    if request.step == "filter":
        return {"study_id": name, "text": one_line(value)}
    turns = [
        {"from": speaker, "value": text}
        for pair in value
        for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]
    return {"image_id": name, "kind": request.kind, "turns": turns}


# ---- By rules ------------------------------------------------------------------------------------


def _by_rules(records: Sequence[ImageRecord], request: Request) -> Written:
    written = Written()
    for record in progress(records, desc="writing", unit="text"):
        name = _name(record, request)
        if request.step == "filter":
            text, reasons = filter_by_rules(record.report)
            if reasons:
                written.held_back.append((name, "; ".join(reasons)))
            else:
                written.rows.append(_row(name, request, text))
            continue
        turns = converse_by_rules(record, grounded=request.grounded, seed=request.seed)
        if len(turns) < ROUNDS[0]:
            written.held_back.append((name, "too little is known for a conversation"))
        else:
            written.rows.append(_row(name, request, turns))
    return written


# ---- By a language model -------------------------------------------------------------------------


def _item(record: ImageRecord, request: Request, settings: RewriteSettings) -> Item:
    name = _name(record, request)
    if request.step == "filter":
        source = one_line(resolve_masks(record.report))
        sections = {"report": source}
    else:
        sections, source = notes(record, grounded=request.grounded)
    key = item_key(settings.endpoint, settings.task, settings.prompt, name, sections)
    return Item(key, name, sections, source)


def _by_model(
    records: Sequence[ImageRecord], out: Path, request: Request, settings: RewriteSettings
) -> Written:
    """Request the answers that the ledger lacks.

    Raises:
        Unfinished: Some have no final state, and not `settings.partial`.
    """
    # Report a missing key before any work.
    settings.endpoint.create_sdk_client(settings.retry_policy.timeout)
    items = [_item(record, request, settings) for record in records]
    written = Written()
    open_items = 0
    with Ledger(out) as ledger:
        result = request_answers(items, settings, ledger)
        rows = ledger.rows([item.key for item in items])
        written.calls = result.calls
        for item in items:
            row = rows[item.key]
            if row.state == DONE:
                answer = json.loads(row.answer or "{}")
                value = answer.get("text")
                if request.step == "converse":
                    value = [(r["question"], r["answer"]) for r in answer["rounds"]]
                written.rows.append(_row(item.source_id, request, value))
            else:
                reason = row.reason or "not asked"
                open_items += row.state not in ("invalid", "refused", "failed")
                written.held_back.append((item.source_id, f"{row.state or 'todo'}: {reason}"))
    if open_items and not settings.partial:
        reason = (result.stop_reason or "not finished").rstrip(".")
        raise Unfinished(
            f"{reason}. {len(written.rows)} of {len(items)} have an answer, saved in "
            f"{ledger.path}; run the same command again to continue, or add --partial to write "
            "the file with these",
            result.exit_code or 1,
        )
    return written


def _write(
    out: Path,
    collection: Collection,
    request: Request,
    settings: RewriteSettings | None,
    written: Written,
    privacy: str,
) -> None:
    name = REPORTS if request.step == "filter" else CONVERSATIONS
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in written.rows]
    write_text_atomic(out / name, "".join(lines))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([("id", "reason"), *written.held_back])
    write_text_atomic(out / HELD_BACK, buffer.getvalue())
    facts = {
        "use": "research use only",
        "collection": collection.title,
        "licence": collection.licence,
        "step": request.step,
        "kind": request.kind if request.step == "converse" else None,
        "splits": list(request.splits),
        "provider": settings.endpoint.provider if settings else "rules",
        "model": settings.endpoint.model if settings else None,
        "prompt": settings.prompt.sha256 if settings else None,
        "privacy": privacy,
        "written": len(written.rows),
        "held_back": dict(Counter(reason for _, reason in written.held_back).most_common(50)),
    }
    write_text_atomic(out / MANIFEST, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
