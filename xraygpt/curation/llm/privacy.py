"""Whether the texts of a corpus may be sent to an endpoint."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from xraygpt.common.errors import InputError
from xraygpt.curation.llm.endpoint import Endpoint, is_loopback
from xraygpt.curation.sources import Corpus


class Licensed(NamedTuple):
    """Texts with a licence.

    Attributes:
        name: What messages call them.
        access: ``public``, or ``credentialed`` for texts that may not be sent to third parties.
    """

    name: str
    access: str


def check_privacy(
    corpus: Corpus | Licensed, endpoint: Endpoint | None, agreement: str, batch: bool
) -> str:
    """Check that the texts of a corpus may be sent to an endpoint.

    Args:
        corpus: The corpus or collection, with its licence.
        endpoint: The endpoint; None for rules.
        agreement: The user's reference to a written zero-retention agreement, or empty.
        batch: Whether the endpoint stores the requests as files.

    Returns:
        The decision, for the manifest.

    Raises:
        InputError: The texts may not be sent.
    """
    if endpoint is None:
        return "rules alone: no text left this machine"
    url = endpoint.address()
    host = urlsplit(url).hostname
    if is_loopback(url):
        return f"sent to {host}: this machine"
    if corpus.access != "credentialed":
        return f"sent to {host}: {corpus.name} is public data"
    if batch:
        raise InputError(
            f"{corpus.name} is credentialed data and --batch stores its reports at {host}; omit "
            "--batch, or serve a model on this machine (--provider local)"
        )
    if not agreement.strip():
        raise InputError(
            f"{corpus.name} is credentialed data: its reports may not be sent to {host}. Serve a "
            "model on this machine (--provider local), or, if you have a written zero-retention "
            "agreement that covers this endpoint, name it: --zero-retention-agreement REFERENCE. "
            "The agreement is not verified; its reference is written to manifest.json"
        )
    if urlsplit(url).scheme != "https":
        raise InputError(f"{corpus.name} is credentialed data: {url} is not encrypted; use https")
    return f"sent to {host} under zero-retention agreement: {agreement.strip()}"
