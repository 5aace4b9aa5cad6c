"""The page's functions, which can be used without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from xraygpt.answering.wording import predicted_rows
from xraygpt.common.errors import InputError
from xraygpt.conversation.attention import AttentionMapper
from xraygpt.demo.display import DisplayedImage
from xraygpt.demo.images import ImageManager
from xraygpt.demo.maps import MapViewer
from xraygpt.demo.report import (
    MAX_REPORT,
    SYNTHETIC_WARNING,
    Format,
    Report,
    as_download,
    render_report,
)
from xraygpt.demo.responder import Responder, question_answers
from xraygpt.demo.sessions import Draft, Session, Sessions
from xraygpt.experiment import ChatParts

_NO_DRAFT = Draft(
    index=-1,
    text="",
    findings="",
    impression="",
    prompt="",
    decoding="",
    seed=None,
    ended="",
    images=[],
)


class DemoController:
    """A chat model and the sessions of its users.

    Args:
        parts: The chat model and its settings.
        name: Model name, for display.
        synthetic: Whether the model was trained on phantoms only.
        examples: Example files to choose from, with their captions.

    Attributes:
        sessions: All open pages.
        images: Manages uploads, examples and the viewer.
        responder: Drafts reports and answers questions.
        attention: Computes attention maps.
        maps: Shows attention maps.
    """

    def __init__(
        self,
        parts: ChatParts,
        name: str,
        synthetic: bool,
        examples: Sequence[tuple[Path, str]] = (),
    ) -> None:
        self.parts, self.name, self.synthetic = parts, name, synthetic
        self.sessions = Sessions(lambda folder: Session(folder, parts.engine.start()))
        self.images = ImageManager(
            self.sessions, parts.read_media, examples, parts.input_check, parts.clips
        )
        self.responder = Responder(parts, self.images)
        self.attention = AttentionMapper(parts.engine)
        self.maps = MapViewer(self.attention, parts.fit)

    def export(
        self, session: Session, findings: str, impression: str, kind: Format
    ) -> dict[str, str]:
        """Export the report as a file for the browser to save.

        Args:
            session: The session.
            findings: Findings on the page, perhaps edited.
            impression: Impression on the page, perhaps edited.
            kind: File format.

        Raises:
            InputError: The text is too long or empty.
        """
        texts = (findings.strip(), impression.strip())
        if max(map(len, texts)) > MAX_REPORT:
            raise InputError(f"a report of more than {MAX_REPORT:,} characters cannot be exported")
        if not any(texts) and not session.conversation.history:
            raise InputError("there is nothing to export yet: draft a report first")
        report = self._report(session, *texts)
        image = session.selected_image
        picture = None
        if image is not None:
            caption = f"Image {session.selected + 1} as shown: {image.description()}"
            picture = (image.pixels(), caption)
        return as_download(render_report(report, kind, picture), kind, report.date)

    def warnings(self, image: DisplayedImage) -> list[str]:
        """Return reasons to doubt that the model can read an image, one sentence each."""
        if image.synthetic and not self.synthetic:
            mismatch = "It is a SYNTHETIC phantom, but the model was trained on X-rays of patients."
            return [*image.warnings, mismatch]
        return list(image.warnings)

    def _predicted_findings(self, draft: Draft) -> list[str]:
        answerer = self.parts.engine.answerer
        if answerer is None:
            return []
        rows = predicted_rows(draft.payload, answerer.vocabulary)
        return [f"{row.name}: {row.likelihood}, {row.probability}" for row in rows if row.present]

    def _report(self, session: Session, findings: str, impression: str) -> Report:
        facts = self.parts.facts
        draft = session.draft or _NO_DRAFT
        edited = session.draft is None or (findings, impression) != (
            draft.findings,
            draft.impression,
        )
        return Report(
            findings=findings,
            impression=impression,
            edited=edited,
            model=f"{self.name} ({facts['arch']}, xraygpt {facts['xraygpt']})",
            revision=str(facts.get("weights") or ""),
            prompt=draft.prompt,
            decoding=draft.decoding,
            seed=draft.seed,
            ended=draft.ended,
            images=draft.images,
            predicted=self._predicted_findings(draft),
            remarks=[
                f"“{draft.text[remark['start'] : remark['end']]}”: {remark['text']}"
                for remark in draft.payload.get("remarks", ())
            ],
            conversation=[
                pair for i, pair in enumerate(question_answers(session)) if i != draft.index
            ],
            facts=facts,
            warning=SYNTHETIC_WARNING if self.synthetic else "",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device is out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError)
