"""Conversion of echovlm and EchoPrime assets; all phrases and numbers are made up."""

from __future__ import annotations

import csv
import json
import pickle
import sys
import types
from collections import Counter, OrderedDict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from xraygpt.common.errors import DataError, InputError
from xraygpt.common.restricted_pickle import ENCODINGS, NUMBERS, load_pickle
from xraygpt.convert_echo import main
from xraygpt.datasets.echo_phrases import PhraseBank, Slots
from xraygpt.datasets.studies import StudiesBuilder
from xraygpt.experiment import NO_IMAGES
from xraygpt.jobs.convert_echo import write_rows
from xraygpt.prompting.tiktoken_bpe import TiktokenData, count_differences, tokenizer_json

PATTERN = (
    r"'(?i:[smt]|ll)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|talk|>")
REPORTS = [
    f"Pump:\nThe pump{'s' * (i % 3)} moved {i} of {2 * i + 1} litres in 0.{i} s.  Don't stop… ünïté"
    for i in range(40)
]
BANK = {
    "Pump": {
        "size": ["The pump is small.", "The pump has <#> valves."],
        "flow": ["It moves between <#> and <#> litres. ", "It turns <string>."],
    },
    "Pipe": {
        "size": ["The pipe is from <#>-<#> cm long.", "It is <#> cm by <#> cm."],
        "kind": ["It is made of <string> with <#> bolts."],
    },
}


def run(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr("sys.argv", ["convert_echo", *map(str, arguments)])
    main()
    return capsys.readouterr().out


# ---- the restricted reader -----------------------------------------------------------------------


def test_plain_data_is_read_and_everything_else_is_refused_by_name(tmp_path):
    path = tmp_path / "x.pkl"
    plain = [{"a": [1, 2.5, None, True]}, (b"bytes", "text"), 2**70]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        if protocol > 2:  # older protocols import a function for bytes
            path.write_bytes(pickle.dumps(plain, protocol))
            assert load_pickle(path) == plain
        for value, name in (
            (OrderedDict(a=1), "collections.OrderedDict"),
            ([[Fraction(1, 2)]], "fractions.Fraction"),
            (Path("x"), "pathlib"),
            (len, "len"),
        ):
            path.write_bytes(pickle.dumps(value, protocol))
            with pytest.raises(DataError, match=f"the pickle contains .*{name}.* refused"):
                load_pickle(path, ENCODINGS)
    for damage in (b"", b"no pickle", pickle.dumps(plain)[:-9]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match="damaged or not a pickle"):
            load_pickle(path)
    with pytest.raises(DataError, match="cannot read"):
        load_pickle(tmp_path / "gone.pkl")


def test_numbers_of_numpy_are_read_if_they_are_asked_for(tmp_path):
    path = tmp_path / "x.pkl"
    values = [
        np.float64(2.5),
        np.float32(0.5),
        np.int64(-3),
        np.uint8(200),
        np.dtype(">f4").type(1),
    ]
    path.write_bytes(pickle.dumps(values))
    assert load_pickle(path, NUMBERS) == [2.5, 0.5, -3, 200, 1]
    assert {type(v) for v in load_pickle(path, NUMBERS)} == {int, float}
    with pytest.raises(DataError, match=r"numpy\..* refused"):
        load_pickle(path)
    path.write_bytes(pickle.dumps(np.array([1.5])))
    with pytest.raises(DataError, match=r"numpy\..* refused"):
        load_pickle(path, NUMBERS)
    path.write_bytes(pickle.dumps(np.datetime64("2020-01-01")))
    with pytest.raises(DataError, match="no number"):
        load_pickle(path, NUMBERS)


# ---- the tokenizer -------------------------------------------------------------------------------


def train_ranks(texts: list[str], size: int) -> dict[bytes, int]:
    """Train a byte-level BPE: repeatedly merge the most frequent pair of neighbours."""
    regex = pytest.importorskip("regex")
    words = Counter(piece.encode() for text in texts for piece in regex.findall(PATTERN, text))
    split = {word: [bytes([b]) for b in word] for word in words}
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        (a, b), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks[a + b] = len(ranks)
        for parts in split.values():
            i = 0
            while i < len(parts) - 1:
                if parts[i] == a and parts[i + 1] == b:
                    parts[i : i + 2] = [a + b]
                i += 1
    return ranks


def reference_ids(ranks: dict[bytes, int], text: str) -> list[int]:
    """The ids of tiktoken: whole pieces first, else the pair of lowest rank, leftmost first."""
    regex = pytest.importorskip("regex")
    ids = []
    for piece in (p.encode() for p in regex.findall(PATTERN, text)):
        if piece in ranks:
            ids.append(ranks[piece])
            continue
        starts = list(range(len(piece) + 1))
        while True:
            candidates = [
                (ranks[piece[starts[i] : starts[i + 2]]], i)
                for i in range(len(starts) - 2)
                if piece[starts[i] : starts[i + 2]] in ranks
            ]
            if not candidates:
                break
            del starts[min(candidates)[1] + 1]
        ids += [ranks[piece[a:b]] for a, b in pairwise(starts)]
    return ids


@pytest.fixture(scope="module")
def encoding() -> TiktokenData:
    texts = [*REPORTS, *("a" * n + " " + "-" * n + " ababab" * (n % 5) for n in range(30))]
    ranks = train_ranks(texts, 340)
    return TiktokenData(PATTERN, ranks, {s: len(ranks) + i for i, s in enumerate(SPECIALS)})


HARD = [
    "", " ", "\n\n  x\r\n", "a" * 37, "-" * 41, "aaaa-aaa", "bababab abaab", "don'T WE'LL",
    "12345 3.14 0", "日本語 😀 ñ e\u0301", "\u00a0\u2003x\t\ty ", "<|bos|> in <|pad|>", "\x00\x7f",
]  # fmt: skip


def test_converted_tokenizers_give_the_ids_of_tiktoken(encoding):
    from tokenizers import Tokenizer

    content = tokenizer_json(encoding)
    tokenizer = Tokenizer.from_str(content)
    tokenizer.encode_special_tokens = True
    rng = np.random.default_rng(0)
    noise = ["".join(rng.choice(list("aab -1\né"), 60)) for _ in range(300)]
    for text in [*REPORTS, *HARD, *noise]:
        ids = tokenizer.encode(text).ids
        assert ids == reference_ids(encoding.ranks, text), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert count_differences(encoding, content, [*REPORTS, *HARD, *noise]) == 0
    tokenizer.encode_special_tokens = False
    expected = [encoding.specials["<|bos|>"], *reference_ids(encoding.ranks, "x")]
    assert tokenizer.encode("<|bos|>x").ids == expected
    assert tokenizer.get_vocab_size() == len(encoding.ranks) + len(SPECIALS)
    lengths = encoding.byte_lengths()
    assert lengths[encoding.ranks["é".encode()[:1]]] == 1 and lengths[-1] == 0


def test_ids_agree_with_the_library_tiktoken(encoding):
    tiktoken = pytest.importorskip("tiktoken")
    library = tiktoken.Encoding(
        "made_up", pat_str=PATTERN, mergeable_ranks=encoding.ranks, special_tokens=encoding.specials
    )
    for text in [*REPORTS, *HARD]:
        assert library.encode_ordinary(text) == reference_ids(encoding.ranks, text)


def test_a_wrong_conversion_is_noticed(encoding):
    content = json.loads(tokenizer_json(encoding))
    content["model"]["merges"] = content["model"]["merges"][:40]
    content["model"]["ignore_merges"] = False
    assert count_differences(encoding, json.dumps(content), REPORTS) == len(REPORTS)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("cl100k_base", "only names tiktoken's encoding 'cl100k_base'"),
        (None, "does not contain a tiktoken encoding"),
        ({"pat_str": "x"}, "does not contain a tiktoken encoding"),
        ({"pat_str": 1, "mergeable_ranks": {}, "special_tokens": {}}, "wrong types"),
        ({"pat_str": "x", "mergeable_ranks": {b"a": 0}, "special_tokens": {}}, "255 of the 256"),
    ],
)
def test_incomplete_tokenizers(state, message):
    with pytest.raises(DataError, match=message):
        TiktokenData.from_state(state, "t.pkl")
    ranks = {bytes([b]): b for b in range(256)}
    state = {"pat_str": "x", "mergeable_ranks": ranks, "special_tokens": {"<|a|>": 7}}
    with pytest.raises(DataError, match="same id"):
        TiktokenData.from_state(state, "t.pkl")


# ---- an echovlm run ------------------------------------------------------------------------------


def pickle_encoding(path: Path, encoding: TiktokenData, monkeypatch) -> None:
    """Pickle a stand-in for tiktoken's class in its way: by the name of the class and its state."""
    module = types.ModuleType("tiktoken.core")

    class Encoding:
        def __getstate__(self):
            return {
                "name": "made_up",
                "pat_str": encoding.pattern,
                "mergeable_ranks": dict(encoding.ranks),
                "special_tokens": dict(encoding.specials),
            }

    Encoding.__module__, Encoding.__qualname__ = "tiktoken.core", "Encoding"
    module.Encoding = Encoding
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tiktoken", types.ModuleType("tiktoken"))
        patch.setitem(sys.modules, "tiktoken.core", module)
        path.write_bytes(pickle.dumps(Encoding()))


@pytest.fixture
def assets(tmp_path, encoding, monkeypatch):
    folder = tmp_path / "assets"
    (folder / "tokenizer").mkdir(parents=True)
    with (folder / "manifest.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["study", "split"])
        order = [*range(39, 2, -1), 0]  # 1 and 2 are not listed
        table.writerows([i, {0: "val", 3: "test"}.get(i, "train")] for i in order)
    (folder / "reports.pkl").write_bytes(pickle.dumps(REPORTS))
    matrix = torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.manual_seed(0)))
    torch.save(matrix, folder / "embeddings.pt")
    pickle_encoding(folder / "tokenizer" / "tokenizer.pkl", encoding, monkeypatch)
    lengths = torch.tensor(encoding.byte_lengths(), dtype=torch.int32)
    lengths[5] = 3
    torch.save(lengths, folder / "token_bytes.pt")
    return folder, matrix


def test_an_echovlm_run_becomes_a_corpus(assets, tmp_path, monkeypatch, capsys, encoding):
    folder, matrix = assets
    out = tmp_path / "out"
    printed = run(monkeypatch, capsys, folder, out)
    assert "1 test, 36 train, 1 val; embeddings of width 16" in printed
    assert "2 reports that the manifest does not list" in printed
    assert "token_bytes.pt has wrong numbers of bytes for 1 tokens" in printed
    assert torch.equal(load_file(out / "embeddings.safetensors")["embeddings"], matrix)
    stanza = yaml.safe_load((out / "datasets.yaml").read_text())["datasets"]["echo"]
    assert stanza.pop("builder") == "studies"
    assert "no transfer" in stanza.pop("licence")
    assert stanza.pop("split") == {"field": "split"}
    builder = StudiesBuilder.Config(**stanza).build(image_spec=NO_IMAGES)
    train, test = builder.build("train"), builder.build("test")
    assert len(train) == 36 and train[0]["study_id"] == "39"
    assert torch.equal(train[0]["media"][0].data, matrix[39:])
    assert test[0]["turns"][1]["text"] == REPORTS[3]
    readme = (out / "README.md").read_text()
    assert "Do not pass on this folder" in readme and "builder: studies" in readme
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert tokenizer.encode(REPORTS[3]) == reference_ids(encoding.ranks, REPORTS[3])
    assert tokenizer.pad_token_id == encoding.specials["<|pad|>"]
    true = load_file(out / "tokenizer" / "token_bytes.safetensors")["token_bytes"]
    assert true.tolist() == encoding.byte_lengths()


def test_faulty_assets_are_named_and_nothing_is_written(assets, tmp_path, monkeypatch, capsys):
    folder, matrix = assets
    out = tmp_path / "out"

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            run(monkeypatch, capsys, folder, out)
        assert not out.exists() and not list(tmp_path.glob("out.tmp*"))

    good = {name: (folder / name).read_bytes() for name in ("reports.pkl", "embeddings.pt")}
    (folder / "reports.pkl").write_bytes(pickle.dumps([*REPORTS[:-1], Fraction(1, 2)]))
    refused("reports.pkl: the pickle contains fractions.Fraction")
    (folder / "reports.pkl").write_bytes(pickle.dumps(REPORTS[1:]))
    refused("reports.pkl has 39 reports, but there are 40 embeddings")
    (folder / "reports.pkl").write_bytes(pickle.dumps([*REPORTS[:-1], " "]))
    refused("1 studies cannot be used: study 39: the report is empty.*--skip-faulty")
    (folder / "reports.pkl").write_bytes(good["reports.pkl"])
    torch.save({"weights": matrix}, folder / "embeddings.pt")
    refused("embeddings.pt: expected one tensor, got dict")
    torch.save([Fraction(1, 2)], folder / "embeddings.pt")
    refused("embeddings.pt: refused or damaged: .*fractions.Fraction")
    matrix[0, 3] = float("nan")
    torch.save(matrix[:, None], folder / "embeddings.pt")
    refused("1 studies cannot be used: study 0: its embedding is NaN or infinite")
    assert "1 faulty studies were left out" in run(
        monkeypatch, capsys, folder, out, "--skip-faulty"
    )


def test_the_old_format_of_torch_and_half_precision(tmp_path):
    from xraygpt.jobs.echo_sources import load_embeddings

    matrix = torch.randn(7, 4).half()
    torch.save(matrix, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(matrix[3:], tmp_path / "new.pt")
    parts = [load_embeddings(tmp_path / name) for name in ("old.pt", "new.pt")]
    assert not write_rows(tmp_path / "m.safetensors", parts).any()
    written = load_file(tmp_path / "m.safetensors")["embeddings"]
    assert written.dtype == torch.float16 and torch.equal(written, torch.cat([matrix, matrix[3:]]))
    write_rows(tmp_path / "d.safetensors", [matrix.double()])
    assert load_file(tmp_path / "d.safetensors")["embeddings"].dtype == torch.float32


# ---- EchoPrime -----------------------------------------------------------------------------------


@pytest.fixture
def bank(tmp_path):
    path = tmp_path / "bank.json"
    path.write_text(json.dumps(BANK))

    def make(**settings: object) -> PhraseBank:
        return PhraseBank(path, Slots(**settings))

    return make


def test_every_slot_gets_its_own_value(bank):
    counts: Counter[str] = Counter()
    report = [(0, 1, 3.0), (0, 2, [2, 4.5]), (0, 3, "slowly"), (1, 0, [1, 2]), (1, 2, ["tin", 8])]
    assert bank().decode(report, counts) == (
        "Pump: The pump has 3 valves. It moves between 2 and 4.5 litres. It turns slowly.\n"
        "Pipe: The pipe is from 1-2 cm long. It is made of tin with 8 bolts."
    )
    assert counts == {"phrases": 5, "filled slots": 8}


def test_one_value_for_several_slots_is_counted_and_never_repeated(bank):
    report = [(0, 2, 12), (1, 0, [9]), (1, 1, 7.5)]
    counts: Counter[str] = Counter()
    assert bank().decode(report, counts) == (
        "Pump: It moves 12 litres.\nPipe: The pipe is 9 cm long. It is 7.5 cm by [?] cm."
    )
    assert counts["one value for several slots"] == 3
    assert bank(single_value="mark").decode(report, Counter()) == (
        "Pump: It moves between 12 and [?] litres.\n"
        "Pipe: The pipe is from 9-[?] cm long. It is 7.5 cm by [?] cm."
    )


def test_missing_and_superfluous_values_are_counted(bank):
    counts: Counter[str] = Counter()
    report = [(0, 1, None), (0, 3, float("nan")), (0, 0, 5), (0, 2, [None, 4])]
    assert bank().decode(report, counts) == (
        "Pump: The pump has [?] valves. It turns [?]. The pump is small. "
        "It moves between [?] and 4 litres."
    )
    assert counts["slots without a value"] == 2 and counts["values without a slot"] == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((2, 0, None), "no section 2; the bank has 2"),
        ((-1, 0, None), "no section -1"),
        ((0, 4, None), "no phrase 4 in Pump; it has 4"),
        ((0, 1.5, None), "whole numbers"),
        ((0, 1), r"expected \(section, phrase, value\)"),
        ((0, 2, [1, 2, 3]), "3 values for a phrase with 2 slots"),
        ((0, 1, {"a": 1}), "must be a number or text"),
    ],
)
def test_malformed_entries(bank, entry, message):
    with pytest.raises(DataError, match=message):
        bank().decode([entry], Counter())


def test_slots_are_configurable_and_checked(bank, tmp_path):
    with pytest.raises(DataError, match="the marks <string>, which are no slots"):
        bank(text_slots=())
    with pytest.raises(ValueError, match="number_slot: must be in angle brackets"):
        bank(number_slot="#")
    with pytest.raises(ValueError, match="text_slots: must differ from each other"):
        bank(number_slot="<string>")
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"A": ["x is <num> or < 5 and > 2", "y <t>"]}))
    slots = Slots("<num>", ("<t>",))
    assert PhraseBank(path, slots).decode([(0, 0, 1), (0, 1, "b")], Counter()) == (
        "A: x is 1 or < 5 and > 2 y b"
    )
    path.write_text(json.dumps({"A": ["x"]}))
    with pytest.raises(DataError, match="no phrase contains a slot"):
        PhraseBank(path, slots)
    for content in ({"A": {"b": "x"}}, {"A": {"b": [1]}}, [], {}):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"must contain groups|expected an object"):
            PhraseBank(path, slots)


def test_own_echoprime_assets_become_a_corpus(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "clone"
    (folder / "model_data").mkdir(parents=True)
    (folder / "all_phr.json").write_text(json.dumps(BANK))
    (folder / "MIL_weights.csv").write_text("section,A4C\nPump,0.5\n")
    reports = [[(0, 0, None), (0, 1, i)] for i in range(9)] + [[(0, 2, 5)], [(9, 9, None)]]
    (folder / "model_data" / "candidate_reports.pkl").write_bytes(pickle.dumps(reports))
    lines = [f"{i},A4C" for i in range(10)] + ["extra,"]
    text = "\n".join(["Study,View", *lines])
    (folder / "model_data" / "candidate_studies.csv").write_text(text)
    matrix = torch.randn(11, 8)
    torch.save(matrix[:6], folder / "candidate_embeddings_p1.pt")
    torch.save(matrix[6:], folder / "candidate_embeddings_p2.pt")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"study extra \(report 10\): there is no section 9"):
        run(monkeypatch, capsys, folder, out)
    printed = run(monkeypatch, capsys, folder, out, "--skip-faulty")
    assert "10 studies; embeddings of width 8" in printed
    assert "1 one value for several slots" in printed
    assert "1 studies whose id is not their position" in printed
    rows = [json.loads(line) for line in (out / "studies.jsonl").read_text().splitlines()]
    assert rows[3] == {
        "study": "3", "row": 3, "view": "A4C",
        "report": "Pump: The pump is small. The pump has 3 valves.",
    }  # fmt: skip
    assert torch.equal(load_file(out / "embeddings.safetensors")["embeddings"], matrix)
    assert (out / "MIL_weights.csv").read_text().startswith("section")
    assert "near_duplicates: 0.9" in (out / "README.md").read_text()
    with pytest.raises(InputError, match=r"contains neither manifest\.csv"):
        run(monkeypatch, capsys, out, tmp_path / "again")
