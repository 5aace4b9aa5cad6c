"""The command line as users type it: privacy, cost, audit, exit codes; prompts and tasks."""

from __future__ import annotations

import csv
import json
import stat
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import REPO
from tests.curation.endpoint import rewriting, run, serving, write_corpus
from xraygpt import curate as command
from xraygpt.common.errors import InputError
from xraygpt.curation.audit import label_difference, read_marks, word_difference
from xraygpt.curation.endpoint import Endpoint, is_loopback, load_price, privacy
from xraygpt.curation.folder import NothingLeft
from xraygpt.curation.prompts import FOLDER, load_prompt
from xraygpt.curation.sources import CORPORA
from xraygpt.curation.tasks import TASKS

COUNT = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


def curate(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
    command.main()


def sources(corpus: Path) -> tuple[object, ...]:
    return ("openi", "--reports", corpus / "ecgen-radiology", "--images", corpus / "png")


def test_credentialed_data_leaves_this_machine_only_under_a_named_agreement():
    mimic, openi = CORPORA["mimic"], CORPORA["openi"]
    public = Endpoint(provider="openai", model="m", base_url="https://192.0.2.1/v1")
    local = Endpoint(model="m", base_url="http://127.0.0.1:8000/v1")
    with pytest.raises(InputError, match="--zero-retention-agreement REFERENCE"):
        privacy(mimic, public, "", False)
    with pytest.raises(InputError, match="--zero-retention-agreement REFERENCE"):
        privacy(mimic, public, "  ", False)
    with pytest.raises(InputError, match="--batch stores its reports"):
        privacy(mimic, public, "contract 7", True)
    assert privacy(mimic, public, "contract 7", False).endswith("agreement: contract 7")
    plain = Endpoint(provider="openai", model="m", base_url="http://192.0.2.1/v1")
    with pytest.raises(InputError, match="use https"):
        privacy(mimic, plain, "contract 7", False)
    assert "this machine" in privacy(mimic, local, "", False)
    assert "open data" in privacy(openi, public, "", False)
    assert "no text left" in privacy(mimic, None, "", False)


def test_the_command_refuses_before_it_reads_or_sends_anything(tmp_path, monkeypatch):
    for more in ((), ("--dry-run",)):
        with pytest.raises(InputError, match=r"may not be sent to api\.example\.org"):
            curate(
                monkeypatch, "mimic", "--reports", tmp_path, "--images", tmp_path, "--out",
                tmp_path / "out", "--provider", "openai", "--model", "m", "--base-url",
                "https://api.example.org/v1", *more,
            )  # fmt: skip
    assert not (tmp_path / "out").exists()


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
def test_what_counts_as_this_machine(url: str, local: bool):
    assert is_loopback(url) == local


def test_no_proxy_of_the_environment_carries_local_texts(corpus, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as (url, fake):
        run(corpus, tmp_path, rewriting(url))
        assert fake.stats["calls"] == COUNT


@pytest.mark.slow
def test_dry_run_sends_nothing_and_comes_close(corpus, tmp_path, monkeypatch, capsys):
    prices = tmp_path / "prices.yaml"
    prices.write_text("fake: {input: 2.0, output: 8.0, batch_discount: 0.5}")
    with serving() as (url, fake):
        asked = (
            *sources(corpus), "--out", tmp_path / "out", "--provider", "local", "--base-url", url,
            "--model", "fake", "--prices", prices, "--rpm", 10, "--dry-run",
        )  # fmt: skip
        curate(monkeypatch, *asked)
        said = capsys.readouterr().out
        assert fake.stats["calls"] == 0
        assert f"{COUNT} rows to ask, nothing was sent" in said
        assert "3.0 minutes" in said
        curate(monkeypatch, *asked[:-1], "--rpm", 10**6)
        real = fake.tokens
    (line,) = [x for x in said.splitlines() if "read" in x]
    guessed = int(line.split()[-3].replace(",", ""))
    (line,) = [x for x in said.splitlines() if "written" in x]
    guessed += int(line.split()[-3].replace(",", ""))
    assert guessed == pytest.approx(sum(real), rel=0.25)
    capsys.readouterr()
    curate(monkeypatch, *asked)
    assert "0 rows to ask" in capsys.readouterr().out


def test_mistakes_on_the_command_line_are_said_before_work(corpus, tmp_path, monkeypatch):
    base = (*sources(corpus), "--out", tmp_path / "out")
    local = (*base, "--provider", "local")
    for more, said in [
        ((*base, "--task", "vqa"), "--task is for a language model: name one with --provider"),
        ((*base, "--model", "m", "--max-usd", 5), "--model, --max-usd is for a language model"),
        ((*base[:-1], REPO / "README.md"), "is a file; name a folder"),
        (local, "needs --model"),
        ((*local, "--model", "m", "--max-usd", 1), "--max-usd needs --prices"),
        ((*local, "--model", "m", "--rpm", 0), "--rpm must be above 0"),
        ((*local, "--model", "m", "--concurrency", 0), "--concurrency must be at least 1"),
        ((*local, "--model", "m", "--prompt", FOLDER / "vqa.v1.md"), "a prompt for the task vqa"),
        ((*local, "--model", "m", "--base-url", "localhost:8000"), "expected http://host:port"),
        ((*local, "--model", "m", "--base-url", "http://u:p@h/v1"), "holds a password"),
        *(
            ((*local, "--model", "m", "--base-url", url), "no address a request could go to")
            for url in (
                "http://foo..bar/v1",
                "http://[::1/v1",
                "http://h:99999/v1",
                "http://h:x/v1",
            )
        ),
        ((*local, "--model", "m", "--max-tokens", "10", "--rpm", "nan"), "--rpm must be above 0"),
    ]:
        with pytest.raises(InputError, match=said):
            curate(monkeypatch, *more)
    assert not (tmp_path / "out").exists()


def test_prices_come_from_the_users_file_alone(tmp_path):
    path = tmp_path / "prices.yaml"
    with pytest.raises(InputError, match="cannot read the prices"):
        load_price(path, "m")
    for text, said in [
        ("other: {input: 1, output: 2}", "has no price of 'm'; it has other"),
        ("m: {input: 1}", "needs input and output"),
        ("m: 3", "needs input and output"),
        ("m: {input: 1, output: -2}", "needs input and output"),
        ("m: {input: 1, output: 2, extra: 3}", "needs input and output"),
        ("m: {input: 1, output: 2, batch_discount: 50}", "0 to 1"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            load_price(path, "m")
    path.write_text("m: {input: 1, output: 2, batch_discount: 0.5}")
    price = load_price(path, "m")
    assert price.of(1e6, 1e6) == 3
    assert price.of(1e6, 1e6, batch=True) == 1.5


def test_each_shipped_prompt_belongs_to_its_task_and_names_its_fields():
    for name, task in TASKS.items():
        prompt = load_prompt(name)
        for field in task.schema()["properties"]:
            assert f"`{field}`" in prompt.system
        asked = prompt.ask({"findings": "A {{ 7 * 7 }} b.", "impression": "C."})
        assert "FINDINGS: A {{ 7 * 7 }} b." in asked  # a report is never a template
        assert "- too long" in prompt.ask_again(["too long"])


def test_faults_of_a_prompt_file_are_named(tmp_path):
    good = (FOLDER / "summarise.v1.md").read_text()
    path = tmp_path / "p.md"
    for text, said in [
        (good.replace("---", "", 1), "no front matter"),
        (good.replace("# repair", "# mending"), "lacks the part # repair"),
        (good.replace("sections.items()", "report"), "'report' is undefined"),
        (good.replace("version: 1", "edition: 1"), "task and version"),
        (good.replace("version: 1", "version: [1"), "task and version"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            load_prompt("summarise", path)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "0 turns"),
        ([("Is there an effusion", "A left effusion is seen.")], "without a question mark"),
        ([("Is there an effusion?", "Yes.")], "an answer that is no sentence"),
        ([("Effusion?", "A left effusion.")] * 2, "a question asked twice"),
        ([("Effusion?", "A right effusion is seen.")], "another side: pleural_effusion"),
        ([("Effusion?", "No effusion is seen.")], "newly denied: pleural_effusion"),
        ([("Is there a nodule?", "A nodule is seen.")], "newly affirmed: lung_lesion"),
        ([("How large?", "It measures 7 cm.")], "a number or unit that is not"),
        ([("Has it changed since the prior exam?", "A left effusion.")], "an earlier study"),
    ],
)
def test_conversations_say_nothing_the_report_does_not(turns, reason: str):
    task = TASKS["vqa"]
    content = json.dumps({"turns": [{"question": q, "answer": a} for q, a in turns]})
    answer, wrong = task.read(content)
    assert not wrong
    found = task.problems("There is a left pleural effusion. The heart is normal.", answer)
    assert any(reason in r for r in found), found


def test_a_field_of_an_answer_that_is_unknown_is_not_repeated():
    """Its name may be report text."""
    _, wrong = TASKS["vqa"].read('{"turns": [{"question": "q?", "zebra": 1}], "quokka": 2}')
    assert wrong == [
        "not of the form that was asked for: (unknown) extra_forbidden, "
        "turns.0.(unknown) extra_forbidden, turns.0.answer missing"
    ]


def test_conversations_train_as_records(corpus, tmp_path):
    from xraygpt.datasets.records import RecordsBuilder
    from xraygpt.experiment import NO_IMAGES

    with serving() as (url, _):
        made = run(corpus, tmp_path, rewriting(url, "vqa"))
    config = RecordsBuilder.Config(storage=tmp_path, annotations="vqa.jsonl", images="image")
    records = config.build(image_spec=NO_IMAGES).build("train", "eval").records
    assert len(records) == made.manifest["accepted"] > COUNT / 2
    roles = [turn["role"] for turn in records[0].turns]
    assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_differences_of_words_and_findings():
    before, after = word_difference("The heart is now large.", "The heart is large. Clear.")
    assert before == [("both", "The heart is"), ("only", "now"), ("both", "large.")]
    assert after == [("both", "The heart is"), ("both", "large."), ("only", "Clear.")]
    labels = label_difference("Left effusion. No pneumothorax.", "Right effusion. Fracture.")
    assert ("pleural effusion, left", "lost") in labels
    assert ("pleural effusion, right", "new") in labels
    assert not any("pneumothorax" in label for label, _ in labels)  # denied: may go unsaid


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
    assert read_marks(tmp_path / "marks.csv").startswith("8 of 9 marked rows are good: 88.9%")
    rows[3]["mark"] = "fine"
    with (tmp_path / "marks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match="line 5: the mark is neither good nor bad"):
        read_marks(tmp_path / "marks.csv")
    (tmp_path / "marks.csv").replace(out / "audit.csv")
    with pytest.raises(InputError, match="holds marks; move it away"):
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


def test_a_prompt_may_name_sections_one_by_one(corpus, tmp_path):
    text = (FOLDER / "summarise.v1.md").read_text()
    start, end = text.index("{% for name"), text.index("# repair")
    path = tmp_path / "p.md"
    path.write_text(f"{text[:start]}{{{{ sections.impression }}}}\n\n{text[end:]}")
    prompt = load_prompt("summarise", path)
    with serving() as (url, fake):
        seen = []
        fake.fault = lambda data, _: seen.append(json.loads(data)["messages"][1]["content"]) or ""
        with pytest.raises(NothingLeft):  # the fake finds no heading, and so says nothing
            run(corpus, tmp_path / "out", rewriting(url, prompt=prompt))
    assert set(seen) == {"Findings as described above."}
    with pytest.raises(InputError, match="'impression'"):
        prompt.check({"findings": "x"})


def test_an_unforeseen_fault_is_told_without_its_message(corpus, tmp_path, monkeypatch):
    from xraygpt.curation import pipeline

    def broken(*_, **__):
        raise RuntimeError("quokka report text")

    monkeypatch.setattr(pipeline, "clean", broken)
    with pytest.raises(command.Fault, match=r"RuntimeError at pipeline\.py:") as caught:
        curate(monkeypatch, *sources(corpus), "--out", tmp_path / "out")
    assert "quokka" not in str(caught.value)
    assert caught.value.__context__ is None


def test_reports_of_one_corpus_do_not_pass_for_another(corpus, tmp_path, monkeypatch):
    kept = tmp_path / "kept.jsonl"
    reports = corpus / "ecgen-radiology"
    curate(monkeypatch, "filter", "openi", "--reports", reports, "--out", kept)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="holds reports of openi, not of mimic"):
        curate(monkeypatch, "filter", "mimic", "--reports", kept, "--out", tmp_path / "x.jsonl")


def test_another_task_wants_another_folder(corpus, tmp_path):
    with serving() as (url, _):
        run(corpus, tmp_path, rewriting(url))
        with pytest.raises(InputError, match="holds the task summarise, not vqa"):
            run(corpus, tmp_path, rewriting(url, "vqa"))


def test_no_cell_is_a_formula(tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "images" / "a.jpg")
    captions = folder / "captions.txt"
    captions.write_text('a\t=HYPERLINK("http://x","Chest x-ray with effusion")\n=cmd\tX-ray.\n')
    roco = ("roco", "--reports", captions)
    with pytest.raises(command.SomeLeft):
        curate(monkeypatch, *roco, "--images", folder / "images", "--out", tmp_path / "out")
    curate(monkeypatch, "audit", *roco, "--out", tmp_path / "out")
    for name in ("held_back.csv", "audit.csv"):
        with (tmp_path / "out" / name).open(newline="") as file:
            assert not any(cell.startswith("=") for row in csv.reader(file) for cell in row)
