"""The command line of curation: refused options, dry run, audit, single steps."""

from __future__ import annotations

import csv
import stat
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import REPO
from tests.curation.fakes import rewrite_settings, run, serving, write_corpus
from xraygpt import curate as command
from xraygpt.common.errors import InputError
from xraygpt.curation.audit import label_difference, summarise_marks, word_difference
from xraygpt.curation.llm.prompts import PROMPT_FOLDER

COUNT = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


def curate(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
    command.main()


def sources(corpus: Path) -> tuple[object, ...]:
    return ("openi", "--reports", corpus / "ecgen-radiology", "--images", corpus / "png")


def test_private_reports_are_refused_before_anything_is_read_or_sent(tmp_path, monkeypatch):
    for options in ((), ("--dry-run",)):
        with pytest.raises(InputError, match=r"may not be sent to api\.example\.org"):
            curate(
                monkeypatch, "mimic", "--reports", tmp_path, "--images", tmp_path, "--out",
                tmp_path / "out", "--provider", "openai", "--model", "m", "--base-url",
                "https://api.example.org/v1", *options,
            )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dry_run_sends_nothing_and_estimates_well(corpus, tmp_path, monkeypatch, capsys):
    prices = tmp_path / "prices.yaml"
    prices.write_text("fake: {input: 2.0, output: 8.0, batch_discount: 0.5}")
    with serving() as (url, fake):
        arguments = (
            *sources(corpus), "--out", tmp_path / "out", "--provider", "local", "--base-url", url,
            "--model", "fake", "--prices", prices, "--rpm", 10, "--dry-run",
        )  # fmt: skip
        curate(monkeypatch, *arguments)
        output = capsys.readouterr().out
        assert fake.stats["calls"] == 0
        assert f"{COUNT} rows to process, nothing was sent" in output
        assert "3.0 minutes" in output
        curate(monkeypatch, *arguments[:-1], "--rpm", 10**6)
        reported = fake.tokens
    (line,) = [x for x in output.splitlines() if "read" in x]
    estimated = int(line.split()[-3].replace(",", ""))
    (line,) = [x for x in output.splitlines() if "written" in x]
    estimated += int(line.split()[-3].replace(",", ""))
    assert estimated == pytest.approx(sum(reported), rel=0.25)
    capsys.readouterr()
    curate(monkeypatch, *arguments)
    assert "0 rows to process" in capsys.readouterr().out


def test_mistakes_on_the_command_line_are_reported_before_any_work(corpus, tmp_path, monkeypatch):
    base = (*sources(corpus), "--out", tmp_path / "out")
    local = (*base, "--provider", "local")
    vqa_prompt = PROMPT_FOLDER / "vqa.v1.md"
    for arguments, message in [
        ((*base, "--task", "vqa"), "--task needs a language model: choose one with --provider"),
        ((*base, "--model", "m", "--max-usd", 5), "--model, --max-usd needs a language model"),
        ((*base[:-1], REPO / "README.md"), "is a file; name a folder"),
        (local, "needs --model"),
        ((*local, "--model", "m", "--max-usd", 1), "--max-usd needs --prices"),
        ((*local, "--model", "m", "--rpm", 0), "--rpm must be above 0"),
        ((*local, "--model", "m", "--concurrency", 0), "--concurrency must be at least 1"),
        (
            (*local, "--model", "m", "--prompt", vqa_prompt),
            "a prompt for the task vqa",
        ),
        ((*local, "--model", "m", "--base-url", "localhost:8000"), "expected http://host:port"),
        (
            (*local, "--model", "m", "--base-url", "http://u:p@h/v1"),
            "contains a user name",
        ),
        *(
            ((*local, "--model", "m", "--base-url", url), "not a valid URL")
            for url in (
                "http://foo..bar/v1",
                "http://[::1/v1",
                "http://h:99999/v1",
                "http://h:x/v1",
            )
        ),
        ((*local, "--model", "m", "--max-tokens", "10", "--rpm", "nan"), "--rpm must be above 0"),
    ]:
        with pytest.raises(InputError, match=message):
            curate(monkeypatch, *arguments)
    assert not (tmp_path / "out").exists()


def test_differences_of_words_and_findings():
    before, after = word_difference("The heart is now large.", "The heart is large. Clear.")
    assert before == [("both", "The heart is"), ("only", "now"), ("both", "large.")]
    assert after == [("both", "The heart is"), ("both", "large."), ("only", "Clear.")]
    labels = label_difference("Left effusion. No pneumothorax.", "Right effusion. Fracture.")
    assert ("pleural effusion, left", "lost") in labels
    assert ("pleural effusion, right", "new") in labels
    assert not any("pneumothorax" in label for label, _ in labels)  # denied findings may be omitted


def test_audit_shows_the_same_rows_for_a_seed_and_counts_marks(
    corpus, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    curate(monkeypatch, *sources(corpus), "--out", out)
    audit = ("audit", "openi", "--reports", corpus / "ecgen-radiology", "--out", out, "--rows", 10)
    curate(monkeypatch, *audit)
    page, table = (out / "audit.html").read_text(), (out / "audit.csv").read_text()
    assert page.count('<section class="row"') == 10
    assert "Research use only" in page
    assert page.count("data:image/jpeg") == 10
    curate(monkeypatch, *audit)
    assert (out / "audit.csv").read_text() == table
    curate(monkeypatch, *audit, "--seed", 1)
    assert (out / "audit.csv").read_text() != table
    rows = list(csv.DictReader(table.splitlines()))
    for i, row in enumerate(rows):
        row["mark"] = "bad" if i == 0 else "good" if i < 9 else ""
    with (tmp_path / "marks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert summarise_marks(tmp_path / "marks.csv").startswith("8 of 9 marked rows are good: 88.9%")
    rows[3]["mark"] = "fine"
    with (tmp_path / "marks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match="line 5: the mark is neither good nor bad"):
        summarise_marks(tmp_path / "marks.csv")
    (tmp_path / "marks.csv").replace(out / "audit.csv")
    with pytest.raises(InputError, match="contains marks; move it away"):
        curate(monkeypatch, *audit)
    capsys.readouterr()


def test_a_report_cannot_put_code_on_the_audit_page(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus", 1)
    (path,) = (corpus / "ecgen-radiology").iterdir()
    path.write_text(path.read_text().replace("Line", "&lt;script&gt;alert(1)&lt;/script&gt; Line"))
    curate(monkeypatch, *sources(corpus), "--out", tmp_path / "out")
    curate(
        monkeypatch, "audit", "openi", "--reports", corpus / "ecgen-radiology", "--out",
        tmp_path / "out",
    )  # fmt: skip
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_an_unexpected_exception_is_reported_without_its_message(corpus, tmp_path, monkeypatch):
    from xraygpt.curation import pipeline

    def failing(*_, **__):
        raise RuntimeError("quokka report text")

    monkeypatch.setattr(pipeline, "clean", failing)
    with pytest.raises(command.InternalError, match=r"RuntimeError at pipeline\.py:") as caught:
        curate(monkeypatch, *sources(corpus), "--out", tmp_path / "out")
    assert "quokka" not in str(caught.value)
    assert caught.value.__context__ is None


def test_reports_of_another_corpus_are_refused(corpus, tmp_path, monkeypatch):
    selected = tmp_path / "selected.jsonl"
    reports = corpus / "ecgen-radiology"
    curate(monkeypatch, "filter", "openi", "--reports", reports, "--out", selected)
    assert stat.S_IMODE(selected.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="contains reports of openi, not of mimic"):
        curate(monkeypatch, "filter", "mimic", "--reports", selected, "--out", tmp_path / "x.jsonl")


def test_another_task_needs_another_folder(corpus, tmp_path):
    with serving() as (url, _):
        run(corpus, tmp_path, rewrite_settings(url))
        with pytest.raises(InputError, match="contains the task summarise, not vqa"):
            run(corpus, tmp_path, rewrite_settings(url, "vqa"))


def test_formulas_in_reports_are_escaped_in_tables(tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "images" / "a.jpg")
    captions = folder / "captions.txt"
    captions.write_text('a\t=HYPERLINK("http://x","Chest x-ray with effusion")\n=cmd\tX-ray.\n')
    roco = ("roco", "--reports", captions)
    with pytest.raises(command.SomeReportsFailed):
        curate(monkeypatch, *roco, "--images", folder / "images", "--out", tmp_path / "out")
    curate(monkeypatch, "audit", *roco, "--out", tmp_path / "out")
    for name in ("held_back.csv", "audit.csv"):
        with (tmp_path / "out" / name).open(newline="") as file:
            assert not any(cell.startswith("=") for row in csv.reader(file) for cell in row)
