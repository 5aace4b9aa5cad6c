"""Prompt files: the shipped ones, and errors in those of users."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.curation.fakes import (
    rewrite_settings,
    run,
    serving,
    write_corpus,
)
from xraygpt.common.errors import InputError
from xraygpt.curation.folder import NothingLeft
from xraygpt.curation.llm.prompts import PROMPT_FOLDER, load_prompt
from xraygpt.curation.llm.tasks import TASKS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 4)


def test_shipped_prompts_name_the_fields_of_their_answers():
    for name, task in TASKS.items():
        prompt = load_prompt(name)
        for field in task.schema()["properties"]:
            assert f"`{field}`" in prompt.system
        message = prompt.render_user({"findings": "A {{ 7 * 7 }} b.", "impression": "C."})
        assert "FINDINGS: A {{ 7 * 7 }} b." in message  # a report is never a template
        assert "- too long" in prompt.render_repair(["too long"])


def test_errors_in_prompt_files(tmp_path):
    good = (PROMPT_FOLDER / "summarise.v1.md").read_text()
    path = tmp_path / "p.md"
    for text, message in [
        (good.replace("---", "", 1), "must start with front matter"),
        (good.replace("# repair", "# mending"), "lacks the part # repair"),
        (good.replace("sections.items()", "report"), "'report' is undefined"),
        (good.replace("version: 1", "edition: 1"), "task and version"),
        (good.replace("version: 1", "version: [1"), "task and version"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_prompt("summarise", path)


def test_a_prompt_can_use_single_sections(corpus, tmp_path):
    text = (PROMPT_FOLDER / "summarise.v1.md").read_text()
    start, end = text.index("{% for name"), text.index("# repair")
    path = tmp_path / "p.md"
    path.write_text(f"{text[:start]}{{{{ sections.impression }}}}\n\n{text[end:]}")
    prompt = load_prompt("summarise", path)
    with serving() as (url, fake):
        seen = []
        fake.fault = lambda data, _: seen.append(json.loads(data)["messages"][1]["content"]) or ""
        with pytest.raises(NothingLeft):  # the fake endpoint answers by headings
            run(corpus, tmp_path / "out", rewrite_settings(url, prompt=prompt))
    assert set(seen) == {"Findings as described above."}
    with pytest.raises(InputError, match="'impression'"):
        prompt.check_templates({"findings": "x"})
