"""Token and cost limits over all runs on a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.curation import fakes
from tests.curation.fakes import (
    rewrite_settings,
    run,
    serving,
    write_corpus,
)
from xraygpt.curation.llm.ledger import Ledger
from xraygpt.curation.llm.limits import Limits
from xraygpt.curation.llm.prices import Price
from xraygpt.curation.pipeline import Unfinished

COUNT = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


@pytest.mark.slow
def test_the_budget_is_never_exceeded(corpus, tmp_path):
    with serving() as (url, fake):
        price = Price(input=1.0, output=1.0)
        limits = Limits(concurrency=4, max_cost=0.01)
        with pytest.raises(Unfinished, match=r"--max-\w+ [\d.,]+ used over all runs"):
            run(corpus, tmp_path, rewrite_settings(url, limits=limits, price=price))
        assert 0 < sum(fake.tokens) <= 10_000
        before = fake.stats["calls"]
        limits = Limits(max_tokens=10**9)
        result = run(corpus, tmp_path, rewrite_settings(url, limits=limits, price=price))
        assert fake.stats["calls"] == COUNT  # paid answers are not requested again
        assert result.calls == COUNT - before
        assert result.usage.cost == pytest.approx(sum(fake.tokens) / 1e6)


@pytest.mark.slow
def test_a_sufficient_budget_finishes_at_any_concurrency(corpus, tmp_path):
    with serving() as (url, fake):
        run(corpus, tmp_path / "plain", rewrite_settings(url))
        needed = sum(fake.tokens)
        limits = Limits(concurrency=32, max_tokens=needed + 1500)
        result = run(corpus, tmp_path / "tight", rewrite_settings(url, limits=limits))
    assert result.manifest["accepted"] == COUNT
    assert result.usage.tokens == needed


def test_an_endpoint_that_reports_more_tokens_does_not_exceed_the_budget(
    corpus, tmp_path, monkeypatch
):
    """It reports eight times the estimate, and half its responses have an unexpected shape."""
    real, used = fakes.fake_endpoint.completion, []

    def completion(request, fault):
        response = real(request, "")
        response["usage"]["prompt_tokens"] *= 8
        used.append(response["usage"]["prompt_tokens"] + response["usage"]["completion_tokens"])
        return response | {"choices": []} if len(used) % 2 else response

    monkeypatch.setattr(fakes.fake_endpoint, "completion", completion)
    with serving() as (url, _):
        limits = Limits(concurrency=16, max_tokens=60_000)
        with pytest.raises(Unfinished, match=r"--max-\w+ [\d.,]+ used over all runs"):
            run(corpus, tmp_path, rewrite_settings(url, limits=limits))
        with Ledger(tmp_path) as ledger:
            assert ledger.total_usage().tokens == sum(used) <= 60_000
