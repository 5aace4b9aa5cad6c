"""A demo controller with a random model."""

from __future__ import annotations

import pytest

from tests.conversation.test_attention import LLM, letters_only
from tests.demo.trained_model import build_parts
from tests.models.qformer_llm.test_model import tiny
from xraygpt.demo.controller import DemoController


@pytest.fixture
def controller():
    model = tiny(llm=LLM)
    letters_only(model)
    controller = DemoController(build_parts(model, max_new_tokens=24), "random", synthetic=False)
    yield controller
    controller.sessions.close()
    assert not controller.sessions.root.exists()
