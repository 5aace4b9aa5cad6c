"""Price files: errors and costs."""

from __future__ import annotations

import pytest

from xraygpt.common.errors import InputError
from xraygpt.curation.llm.prices import load_price


def test_price_files(tmp_path):
    path = tmp_path / "prices.yaml"
    with pytest.raises(InputError, match="cannot read the prices in"):
        load_price(path, "m")
    for text, message in [
        ("other: {input: 1, output: 2}", "has no price for 'm'; it lists other"),
        ("m: {input: 1}", "needs input and output"),
        ("m: 3", "needs input and output"),
        ("m: {input: 1, output: -2}", "needs input and output"),
        ("m: {input: 1, output: 2, extra: 3}", "needs input and output"),
        ("m: {input: 1, output: 2, batch_discount: 50}", "0 to 1"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_price(path, "m")
    path.write_text("m: {input: 1, output: 2, batch_discount: 0.5}")
    price = load_price(path, "m")
    assert price.cost(1e6, 1e6) == 3
    assert price.cost(1e6, 1e6, batch=True) == 1.5
