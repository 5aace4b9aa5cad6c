"""Which language model is asked, and whether a corpus may be sent there at all."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from xraygpt.common.addresses import is_loopback_host
from xraygpt.common.errors import InputError
from xraygpt.curation.sources import Corpus

if TYPE_CHECKING:
    import openai

LOCAL, OPENAI = "http://127.0.0.1:8000/v1", "https://api.openai.com/v1"
PROVIDERS = ("rules", "local", "openai", "azure")
_MISSING = "the package openai is absent: in the clone, .venv/bin/pip install -e '.[curate]'"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A language model behind an OpenAI-compatible address.

    Keys are read from the environment alone, when the client is made: `OPENAI_API_KEY` for
    ``openai``, `AZURE_OPENAI_API_KEY` or `AZURE_OPENAI_AD_TOKEN` for ``azure``,
    `XRAYGPT_API_KEY` for ``local``, if it wants one.
    """

    provider: str = "local"
    """``local`` (vLLM, Ollama, llama.cpp and the like), ``openai`` or ``azure``."""
    model: str = ""
    """As the endpoint calls it; for Azure the name of the deployment."""
    base_url: str = ""
    """Address; empty: the provider's."""
    temperature: float | None = 0.0
    """0 to 2; None leaves it to the endpoint, as some models demand."""
    seed: int | None = None
    """Sent along if given; few endpoints honour it."""

    def address(self) -> str:
        """The address that texts would be sent to.

        Raises:
            InputError: It is no http(s) address, or Azure's is not set.
        """
        url = self.base_url
        if not url and self.provider == "azure":
            url = os.environ.get("AZURE_OPENAI_ENDPOINT", "")
            if not url:
                raise InputError("--provider azure: set AZURE_OPENAI_ENDPOINT, or give --base-url")
        if not url:
            named = os.environ.get("OPENAI_BASE_URL", "") if self.provider == "openai" else ""
            url = named or (OPENAI if self.provider == "openai" else LOCAL)
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises where it is no port
            (parts.hostname or "").encode("idna")
        except ValueError:
            raise InputError(f"--base-url {url}: no address a request could go to") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--base-url {url}: expected http://host:port/v1 or https://…")
        if parts.username or parts.password:
            raise InputError("--base-url holds a password; keys come from the environment alone")
        return url

    def decoding(self, output_tokens: int) -> dict[str, Any]:
        """Parameters of a call that its answer depends on."""
        said: dict[str, Any] = {"temperature": self.temperature, "seed": self.seed}
        limit = "max_tokens" if self.provider == "local" else "max_completion_tokens"
        return {k: v for k, v in {**said, limit: output_tokens}.items() if v is not None}

    def client(self, timeout: float) -> openai.AsyncOpenAI:
        """The SDK's client: no retries of its own, no redirect to another host, no text in logs.

        Args:
            timeout: Seconds for one call.

        Raises:
            InputError: The SDK is absent or a key is not set.
        """
        try:
            import openai
        except ImportError:
            raise InputError(_MISSING) from None
        quiet_logs()
        loopback = is_loopback(self.address())
        made: dict[str, Any] = {
            "max_retries": 0,
            "timeout": timeout,
            # A proxy of the environment would carry "local" texts to another host.
            "http_client": openai.DefaultAsyncHttpxClient(
                follow_redirects=False, trust_env=not loopback, timeout=timeout,
                # Plain http has no certificates to check, and reading them takes a while.
                verify=not self.address().startswith("http://"),
            ),
        }  # fmt: skip
        if self.provider == "azure":
            return openai.AsyncAzureOpenAI(**{**made, **self._azure()})
        name = "OPENAI_API_KEY" if self.provider == "openai" else "XRAYGPT_API_KEY"
        key = os.environ.get(name) or ("" if self.provider == "openai" else "none")
        if not key:
            raise InputError(f"--provider openai: set {name} in the environment")
        return openai.AsyncOpenAI(**made, api_key=key, base_url=self.address())

    def _azure(self) -> dict[str, str]:
        key = os.environ.get("AZURE_OPENAI_API_KEY", "")
        token = os.environ.get("AZURE_OPENAI_AD_TOKEN", "")
        version = os.environ.get("AZURE_OPENAI_API_VERSION") or os.environ.get("OPENAI_API_VERSION")
        if not (key or token) or not version:
            raise InputError(
                "--provider azure: set AZURE_OPENAI_API_KEY (or AZURE_OPENAI_AD_TOKEN) and "
                "AZURE_OPENAI_API_VERSION in the environment"
            )
        said = {"api_version": version, "azure_endpoint": self.address(), "api_key": key}
        return {k: v for k, v in {**said, "azure_ad_token": token}.items() if v}


def quiet_logs() -> None:
    """The SDK and its HTTP library log whole requests if told to; reports are not for logs."""
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def is_loopback(url: str) -> bool:
    """Whether an address is this machine."""
    return is_loopback_host(urlsplit(url).hostname or "")


def privacy(corpus: Corpus, endpoint: Endpoint | None, agreement: str, batch: bool) -> str:
    """Decide whether the texts of a corpus may be sent to an endpoint; goes into the manifest.

    Args:
        corpus: With its licence.
        endpoint: None for rules.
        agreement: The user's reference of a written zero-retention agreement, or empty.
        batch: Whether the endpoint is to keep files of requests.

    Raises:
        InputError: They may not.
    """
    if endpoint is None:
        return "rules alone: no text left this machine"
    url = endpoint.address()
    host = urlsplit(url).hostname
    if is_loopback(url):
        return f"sent to {host}: this machine"
    if corpus.licence != "credentialed":
        return f"sent to {host}: {corpus.name} is open data"
    if batch:
        raise InputError(
            f"{corpus.name} is credentialed data and --batch stores its reports at {host}; leave "
            "--batch out, or serve a model on this machine (--provider local)"
        )
    if not agreement.strip():
        raise InputError(
            f"{corpus.name} is credentialed data: its reports may not be sent to {host}. Serve a "
            "model on this machine (--provider local), or, if you hold a written zero-retention "
            "agreement that covers this endpoint, name it: --zero-retention-agreement REFERENCE. "
            "We cannot judge it for you; the reference goes into manifest.json"
        )
    if urlsplit(url).scheme != "https":
        raise InputError(f"{corpus.name} is credentialed data: {url} is not encrypted; use https")
    return f"sent to {host} under zero-retention agreement: {agreement.strip()}"


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in the user's currency."""

    input: float
    output: float
    batch_discount: float = 0.0
    """Share taken off for batches, 0 to 1."""

    def of(self, tokens_in: float, tokens_out: float, batch: bool = False) -> float:
        """Money for so many tokens."""
        full = (self.input * tokens_in + self.output * tokens_out) / 1e6
        return full * (1 - self.batch_discount if batch else 1)


def load_price(path: Path, model: str) -> Price:
    """The price of a model from a file the user keeps: ``model: {input: …, output: …}``.

    Raises:
        InputError: No such file or model, or a price that is no number of at least 0.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the prices {path}: {error}") from None
    if isinstance(table, dict) and model in table and not isinstance(table[model], dict):
        table[model] = {}
    if not isinstance(table, dict) or not isinstance(table.get(model), dict):
        known = ", ".join(map(str, table)) if isinstance(table, dict) else "nothing"
        raise InputError(f"{path} has no price of {model!r}; it has {known}")
    row = table[model]
    allowed = {"input", "output", "batch_discount"}
    good = {"input", "output"} <= set(row) <= allowed and all(
        isinstance(v, int | float) and not isinstance(v, bool) and v >= 0 for v in row.values()
    )
    if not good or row.get("batch_discount", 0) > 1:
        raise InputError(
            f"{path}: {model} needs input and output, each a number per million tokens, and may "
            "have batch_discount, 0 to 1"
        )
    return Price(**row)
