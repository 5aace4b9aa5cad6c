"""The endpoint of a language model: address, key and decoding parameters."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from xraygpt.common.addresses import is_loopback_host
from xraygpt.common.errors import InputError

if TYPE_CHECKING:
    import openai

LOCAL_URL, OPENAI_URL = "http://127.0.0.1:8000/v1", "https://api.openai.com/v1"
PROVIDERS = ("rules", "local", "openai", "azure")
NO_KEY = "none"  # the SDK requires a key, also for servers that need none
NOT_INSTALLED = (
    "the package openai is not installed; run .venv/bin/pip install -e '.[curate]' in the clone"
)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A language model behind an OpenAI-compatible address.

    Keys are read only from the environment, when the SDK client is created: `OPENAI_API_KEY` for
    ``openai``, `AZURE_OPENAI_API_KEY` or `AZURE_OPENAI_AD_TOKEN` for ``azure``, and optionally
    `XRAYGPT_API_KEY` for ``local``.
    """

    provider: str = "local"
    """``local`` (vLLM, Ollama, llama.cpp and others), ``openai`` or ``azure``."""
    model: str = ""
    """Name of the model at the endpoint; for Azure, the name of the deployment."""
    base_url: str = ""
    """The address of the endpoint; empty for the provider's default."""
    temperature: float | None = 0.0
    """0 to 2, or None to omit the parameter, as some models require."""
    seed: int | None = None
    """The seed to send; None to send none. Few endpoints use it."""

    def address(self) -> str:
        """Return the URL that texts are sent to.

        Raises:
            InputError: The address is not an http(s) URL, or Azure's address is not set.
        """
        url = self.base_url or self._default_url()
        problem = url_problem(url)
        if problem:
            raise InputError(f"--base-url {problem}")
        return url

    def _default_url(self) -> str:
        if self.provider == "azure":
            url = os.environ.get("AZURE_OPENAI_ENDPOINT", "")
            if not url:
                raise InputError("--provider azure: set AZURE_OPENAI_ENDPOINT, or pass --base-url")
            return url
        if self.provider == "openai":
            return os.environ.get("OPENAI_BASE_URL", "") or OPENAI_URL
        return LOCAL_URL

    def decoding(self, output_tokens: int) -> dict[str, Any]:
        """Return the decoding parameters of a call, which its answer depends on."""
        limit = "max_tokens" if self.provider == "local" else "max_completion_tokens"
        parameters: dict[str, Any] = {
            "temperature": self.temperature,
            "seed": self.seed,
            limit: output_tokens,
        }
        return {name: value for name, value in parameters.items() if value is not None}

    def create_sdk_client(self, timeout: float) -> openai.AsyncOpenAI:
        """Create the SDK client, without retries, redirects or logged request texts.

        Args:
            timeout: Seconds per call.

        Raises:
            InputError: The SDK is not installed or a key is not set.
        """
        if self.provider == "azure":
            openai = _import_sdk()
            options = _sdk_options(self.address(), timeout)
            return openai.AsyncAzureOpenAI(**{**options, **self._azure_options()})
        variable = "OPENAI_API_KEY" if self.provider == "openai" else "XRAYGPT_API_KEY"
        key = os.environ.get(variable) or ("" if self.provider == "openai" else NO_KEY)
        if not key:
            raise InputError(f"--provider openai: set {variable} in the environment")
        return make_sdk_client(self.address(), key, timeout)

    def _azure_options(self) -> dict[str, str]:
        key = os.environ.get("AZURE_OPENAI_API_KEY", "")
        token = os.environ.get("AZURE_OPENAI_AD_TOKEN", "")
        # The last one is RadVLM's.
        names = ("AZURE_OPENAI_API_VERSION", "OPENAI_API_VERSION", "AZURE_API_VERSION")
        version = next((os.environ[name] for name in names if os.environ.get(name)), "")
        if not (key or token) or not version:
            raise InputError(
                "--provider azure: set AZURE_OPENAI_API_KEY (or AZURE_OPENAI_AD_TOKEN) and "
                "AZURE_OPENAI_API_VERSION in the environment"
            )
        options = {
            "api_version": version,
            "azure_endpoint": self.address(),
            "api_key": key,
            "azure_ad_token": token,
        }
        return {name: value for name, value in options.items() if value}


def url_problem(url: str) -> str:
    """Return what is wrong with the address of an endpoint, or "" if nothing is."""
    if "@" in url.partition("://")[2].partition("/")[0]:  # not repeated in the message
        return "contains a user name or password; keys are read only from the environment"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError for an invalid port
        (parts.hostname or "").encode("idna")
    except ValueError:
        return f"{url}: not a valid URL"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"{url}: expected http://host:port/v1 or https://…"
    return ""


def make_sdk_client(url: str, key: str, timeout: float) -> openai.AsyncOpenAI:
    """Create an SDK client without retries, redirects or logged request texts.

    Args:
        url: The address, for which `url_problem` is empty.
        key: The key; `NO_KEY` for a server that needs none.
        timeout: Seconds per call.

    Raises:
        InputError: The SDK is not installed.
    """
    sdk = _import_sdk()
    return sdk.AsyncOpenAI(**_sdk_options(url, timeout), api_key=key, base_url=url)


def _import_sdk() -> Any:
    try:
        import openai
    except ImportError:
        raise InputError(NOT_INSTALLED) from None
    silence_sdk_logs()
    return openai


def _sdk_options(url: str, timeout: float) -> dict[str, Any]:
    client = _import_sdk().DefaultAsyncHttpxClient(
        follow_redirects=False,
        # A proxy from the environment would send "local" texts to another host.
        trust_env=not is_loopback(url),
        timeout=timeout,
        # Plain http has no certificates to check, and loading them is slow.
        verify=not url.startswith("http://"),
    )
    return {"max_retries": 0, "timeout": timeout, "http_client": client}


def silence_sdk_logs() -> None:
    """Keep report text out of logs, as the SDK and its HTTP library log requests at low levels."""
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def is_loopback(url: str) -> bool:
    """Return whether a URL points to this machine."""
    return is_loopback_host(urlsplit(url).hostname or "")
