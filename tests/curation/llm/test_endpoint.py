"""Endpoints: keys, addresses, proxies and privacy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.curation import fakes
from tests.curation.fakes import (
    rewrite_settings,
    run,
    serving,
    write_corpus,
)
from xraygpt.common.errors import InputError
from xraygpt.curation.llm.endpoint import Endpoint, is_loopback
from xraygpt.curation.llm.privacy import check_privacy
from xraygpt.curation.sources import CORPORA

COUNT = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


def test_credentialed_data_is_sent_to_other_hosts_only_under_an_agreement():
    mimic, openi = CORPORA["mimic"], CORPORA["openi"]
    public = Endpoint(provider="openai", model="m", base_url="https://192.0.2.1/v1")
    local = Endpoint(model="m", base_url="http://127.0.0.1:8000/v1")
    with pytest.raises(InputError, match="--zero-retention-agreement REFERENCE"):
        check_privacy(mimic, public, "", False)
    with pytest.raises(InputError, match="--zero-retention-agreement REFERENCE"):
        check_privacy(mimic, public, "  ", False)
    with pytest.raises(InputError, match="--batch stores its reports"):
        check_privacy(mimic, public, "contract 7", True)
    assert check_privacy(mimic, public, "contract 7", False).endswith("agreement: contract 7")
    plain = Endpoint(provider="openai", model="m", base_url="http://192.0.2.1/v1")
    with pytest.raises(InputError, match="use https"):
        check_privacy(mimic, plain, "contract 7", False)
    assert "this machine" in check_privacy(mimic, local, "", False)
    assert "public data" in check_privacy(openi, public, "", False)
    assert "no text left" in check_privacy(mimic, None, "", False)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://[::1]:1/v1", True),
        ("http://localhost:1/v1", True),
        ("http://localhost.example.invalid/v1", False),
        ("http://127.0.0.1.example.invalid/v1", False),
        ("http://127.0.0.1@192.0.2.1/v1", False),
        ("http://10.0.0.1/v1", False),
        ("http://0.0.0.0/v1", False),
    ],
)
def test_is_loopback(url: str, local: bool):
    assert is_loopback(url) == local


def test_proxies_of_the_environment_are_not_used_for_local_endpoints(corpus, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as (url, fake):
        run(corpus, tmp_path, rewrite_settings(url))
        assert fake.stats["calls"] == COUNT


def test_a_missing_key_is_reported_with_the_name_of_its_variable(corpus, tmp_path, monkeypatch):
    for name in list(os.environ):
        if "OPENAI" in name:
            monkeypatch.delenv(name)
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        run(corpus, tmp_path, rewrite_settings("", endpoint=Endpoint(provider="openai", model="m")))
    with pytest.raises(InputError, match="set AZURE_OPENAI_ENDPOINT"):
        run(corpus, tmp_path, rewrite_settings("", endpoint=Endpoint(provider="azure", model="m")))


def test_azure_requests_name_the_deployment(corpus, tmp_path, monkeypatch):
    seen: list[tuple[str, str]] = []

    async def route(fake, method, path, data, headers):
        seen.append((path, headers.get("api-key", "")))
        return await fakes.fake_endpoint.chat(fake, data, headers)

    monkeypatch.setattr(fakes.fake_endpoint, "route", route)
    with serving() as (url, _):
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", url.removesuffix("/v1"))
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "secret")
        monkeypatch.setenv("AZURE_OPENAI_API_VERSION", "2024-10-21")
        settings = rewrite_settings("", endpoint=Endpoint(provider="azure", model="gpt-x"))
        assert run(corpus, tmp_path, settings).manifest["accepted"] == COUNT
    path = "/openai/deployments/gpt-x/chat/completions?api-version=2024-10-21"
    assert set(seen) == {(path, "secret")}
    for file in tmp_path.glob("*"):
        if file.is_file():
            assert b"secret" not in file.read_bytes()
