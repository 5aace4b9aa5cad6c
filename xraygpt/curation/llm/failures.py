"""What a failed call leads to: a retry, a final reply, or the end of the run.

No message here contains text from the endpoint, because such text may quote a report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from xraygpt.common.errors import XrayGPTError
from xraygpt.curation.llm.completions import Reply
from xraygpt.curation.llm.limits import parse_retry_after

if TYPE_CHECKING:
    import openai

ERROR_CODE = re.compile(r"^[a-z][a-z_]{2,40}$")
_RETRIED = frozenset({408, 409, 425, 429}) | frozenset(range(500, 600))
_MAX_UNREACHABLE = 4  # failed connections before any accepted request
_MAX_MALFORMED = 10  # requests rejected as malformed before any accepted request
_TOO_LONG = re.compile(r"context.{0,12}(?:length|size|window)|too many tokens|prompt is too long")
TOO_LONG = "the request is longer than the model's context"
COMMAND_REMEDIES = {
    "key": "the key is wrong or has no access to this model",
    "not_found": "no such address or model ({model})",
    "quota": "the quota is used up",
    "redirect": "the endpoint redirects to another address; pass that address as --base-url",
    "unreachable": "no server is listening there; start it, or correct the address",
    "temperature": "the model does not accept a temperature: use --temperature none",
    "seed": "the endpoint does not accept a seed: omit --model-seed",
    "response_format": "the endpoint or model does not support structured outputs (JSON schema)",
    "max_tokens": "the endpoint expects max_completion_tokens: use --provider openai, --base-url",
    "max_completion_tokens": "the endpoint expects max_tokens: use --provider local, --base-url",
    "model": "the endpoint has no model with the name given as --model",
}
"""What to do about failures that end a run, in the words of `xraygpt.curate`. The keys are those of
`_FATAL`, ``unreachable``, and names of request fields that an endpoint may reject."""
_FATAL = {
    401: "key",
    403: "key",
    404: "not_found",
    429: "quota",
    **dict.fromkeys((301, 302, 303, 307, 308), "redirect"),
}


class EndpointError(XrayGPTError):
    """The endpoint cannot be used; the run stops and all answers so far are saved.

    Attributes:
        status: The HTTP status, or 0 if there is none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Failure:
    """Why one call returned no result.

    Attributes:
        reason: The reason, for messages.
        retry_after: How many seconds the endpoint asked to wait.
        maybe_processed: Whether the endpoint may have processed (and charged) the request.
        final: The final reply, if no retry can change it.
    """

    reason: str = ""
    retry_after: float | None = None
    maybe_processed: bool = False
    final: Reply | None = None


@dataclass(frozen=True)
class HttpError:
    """The parts of an HTTP error that cannot contain report text."""

    status: int
    code: str
    parameter: str
    retry_after: float | None
    too_long: bool = False  # whether the request exceeds the model's context

    @staticmethod
    def from_sdk(error: openai.APIStatusError) -> HttpError:
        """Extract these parts from the SDK's exception."""
        code, status = str(error.code or ""), int(error.status_code)
        too_long = code == "context_length_exceeded" or _TOO_LONG.search(error.message.lower())
        return HttpError(
            status,
            code if ERROR_CODE.match(code) else "",
            error.param if isinstance(error.param, str) else "",
            parse_retry_after({k.lower(): v for k, v in error.response.headers.items()}),
            status in (400, 413, 422) and bool(too_long),
        )


class FailureClassifier:
    """Decides what failures lead to, given what the endpoint did earlier in this run.

    Args:
        url: The address of the endpoint.
        model: Name of the model.
        remedies: What to do, with the keys of `COMMAND_REMEDIES`.
    """

    def __init__(
        self, url: str, model: str, remedies: Mapping[str, str] = COMMAND_REMEDIES
    ) -> None:
        self.url, self.model, self.remedies = url, model, remedies
        self._accepted = self._malformed = self._unreachable = 0

    def record_accepted(self) -> None:
        """Count a request that returned a result."""
        self._accepted += 1

    def unreachable(self) -> Failure:
        """Classify a connection that was refused.

        Raises:
            EndpointError: No request was accepted in this run.
        """
        self._unreachable += 1
        if not self._accepted and self._unreachable >= _MAX_UNREACHABLE:
            self.stop(self.remedies["unreachable"])
        return Failure("no connection")

    def http_error(self, error: HttpError) -> Failure:
        """Classify an HTTP error.

        Raises:
            EndpointError: No later call can succeed.
        """
        reason = f"HTTP {error.status}" + (f" ({error.code})" if error.code else "")
        if error.status in _RETRIED and error.code != "insufficient_quota":
            return Failure(reason, retry_after=error.retry_after)
        if error.status in _FATAL:
            remedy = self.remedies[_FATAL[error.status]].format(model=self.model)
            self.stop(f"{reason}: {remedy}", error.status)
        if error.too_long:
            return Failure(final=Reply("failed", reason=f"{reason}: {TOO_LONG}"))
        if error.code in ("content_filter", "content_policy_violation"):
            return Failure(final=Reply("refused", reason=f"{reason}: content filter"))
        if error.parameter in self.remedies:
            self.stop(f"{reason}: {self.remedies[error.parameter]}", error.status)
        self._malformed += 1
        if not self._accepted and self._malformed >= _MAX_MALFORMED:
            self.stop(f"{reason} for each of the first {_MAX_MALFORMED} requests", error.status)
        return Failure(final=Reply("failed", reason=reason))

    def stop(self, reason: str, status: int = 0) -> NoReturn:
        """End the run by raising an exception.

        Raises:
            EndpointError: Always.
        """
        raise EndpointError(f"{self.url}: {reason}", status) from None
