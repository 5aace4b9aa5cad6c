"""The Batch API of an endpoint: uploading, starting, polling and downloading, with retries."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from xraygpt.curation.llm.caller import Call
from xraygpt.curation.llm.client import Client
from xraygpt.curation.llm.completions import Reply, parse_completion
from xraygpt.curation.llm.failures import ERROR_CODE, EndpointError
from xraygpt.curation.llm.ledger_rows import Batch

COMPLETIONS_URL: Final = "/v1/chat/completions"
_FINISHED = ("completed", "failed", "expired", "cancelled")


class BatchApi:
    """The batch requests to one endpoint.

    Every method raises EndpointError if the endpoint returns no result, and RunStopped if the run
    is stopping.

    Args:
        client: The client that makes the calls.
        poll_seconds: Seconds between two status requests.
    """

    def __init__(self, client: Client, poll_seconds: float) -> None:
        self.client, self.poll_seconds = client, poll_seconds
        self.sdk = client.sdk
        self.file_timeout = 10 * client.retry_policy.timeout  # seconds; files are large

    async def upload(self, data: bytes) -> str:
        """Upload a file of requests and return its id."""
        file = await self._call(
            lambda headers: self.sdk.files.create(
                file=("requests.jsonl", io.BytesIO(data)), purpose="batch",
                extra_headers=headers, timeout=self.file_timeout,
            ),
            timeout=self.file_timeout,
        )  # fmt: skip
        return str(file.id)

    async def start(self, file_id: str) -> str:
        """Start a batch and return its id.

        The call is not retried, because a call without a response may have started the batch.
        """
        batch = await self._call(
            lambda headers: self.sdk.batches.create(
                input_file_id=file_id, endpoint=COMPLETIONS_URL, completion_window="24h",
                extra_headers=headers,
            ),
            attempts=1,
        )  # fmt: skip
        return str(batch.id)

    async def find(self, file_id: str) -> str | None:
        """Return the id of a file's batch, or None if it is not among the newest thousand."""
        after: dict[str, Any] = {}
        for _ in range(10):
            page = await self._call(
                lambda headers: self.sdk.batches.list(limit=100, extra_headers=headers, **after)
            )
            for batch in page.data:
                if batch.input_file_id == file_id:
                    return str(batch.id)
            if not page.data or not getattr(page, "has_more", False):
                break
            after["after"] = page.data[-1].id
        return None

    async def collect(
        self, batch: Batch, on_status: Callable[[str], None]
    ) -> tuple[dict[str, Any], str]:
        """Wait for a batch and download its responses.

        Args:
            batch: A started batch.
            on_status: Called with the status of the batch at each poll.

        Returns:
            The responses by custom_id, and what is wrong with the batch as a whole (or nothing).
        """
        responses: dict[str, Any] = {}
        try:
            finished = await self._wait_until_finished(batch, on_status)
            for file_id in (finished.output_file_id, finished.error_file_id):
                if file_id:
                    responses.update(await self._download(file_id))
        except EndpointError as error:
            if error.status != 404:
                raise
            return responses, "no longer exists"
        failed = finished.status == "failed"
        return responses, f"was refused as a whole{_error_code(finished)}" if failed else ""

    async def _wait_until_finished(self, batch: Batch, on_status: Callable[[str], None]) -> Any:
        while True:
            found = await self._call(
                lambda headers: self.sdk.batches.retrieve(
                    str(batch.batch_id), extra_headers=headers
                )
            )
            status = getattr(found, "status", None)
            if status in _FINISHED:
                return found
            counts = getattr(found, "request_counts", None)
            done = f"{counts.completed} of {counts.total}" if counts else "in progress"
            on_status(f"batch {batch.number}: {status}, {done}")
            await self.client.stop.wait_for(asyncio.sleep(self.poll_seconds))

    async def _download(self, file_id: str) -> dict[str, Any]:
        """Download the responses by custom_id; a malformed line counts as not answered."""
        content = await self._call(
            lambda headers: self.sdk.files.content(
                file_id, extra_headers=headers, timeout=self.file_timeout
            ),
            parse=lambda response: getattr(response, "content", None),
            timeout=self.file_timeout,
        )
        responses = {}
        for line in content.splitlines():
            try:
                row = json.loads(line)
                responses[row["custom_id"]] = row["response"]
            except (ValueError, KeyError, TypeError):
                continue
        return responses

    async def _call(
        self, call: Call, parse: Callable[[Any], Any] | None = None, **options: Any
    ) -> Any:
        result, failure = await self.client.call_with_retries(
            call, parse or _object_or_page, **options
        )
        if result is None:
            raise EndpointError(f"{self.client.endpoint.address()}: batches: {failure.reason}")
        return result


def parse_response(response: Any, estimated_in: int) -> Reply | None:
    """Convert the response to a line into a `Reply`, or None if the endpoint failed to answer."""
    if not isinstance(response, dict) or response.get("status_code") != 200:
        return None
    return parse_completion(_with_attributes(response.get("body")), estimated_in)


def _object_or_page(response: Any) -> Any:
    return response if hasattr(response, "id") or hasattr(response, "data") else None


def _error_code(batch: Any) -> str:
    errors = getattr(getattr(batch, "errors", None), "data", None) or []
    codes = [str(getattr(error, "code", "") or "") for error in errors]
    return next((f" ({code})" for code in codes if ERROR_CODE.match(code)), "")


def _with_attributes(value: Any) -> Any:
    """Convert JSON to objects with attributes like those the SDK returns for single calls."""
    if isinstance(value, dict):
        return SimpleNamespace(**{str(k): _with_attributes(v) for k, v in value.items()})
    return [_with_attributes(v) for v in value] if isinstance(value, list) else value
