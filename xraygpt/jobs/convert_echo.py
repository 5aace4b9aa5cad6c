"""Writes the studies of echovlm and EchoPrime as a corpus for the builder `studies`."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from xraygpt.common.checks import SettingsError
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.memory import release_freed_memory
from xraygpt.common.publishing import publish_folder
from xraygpt.datasets.echo_phrases import UNKNOWN, Slots
from xraygpt.jobs.echo_sources import (
    EchoPaths,
    EchoSource,
    detect_source,
    read_echoprime,
    read_echovlm,
    rows_of,
)
from xraygpt.prompting.tiktoken_bpe import (
    TiktokenData,
    count_differences,
    tokenizer_config,
    tokenizer_json,
)
from xraygpt.version import __version__

log = logging.getLogger(__name__)

TABLE, ARRAYS, STANZA = "studies.jsonl", "embeddings.safetensors", "datasets.yaml"
CHUNK = 16_384  # rows of embeddings in memory
CHECKED_TEXTS = 300  # reports with which the converted tokenizer is compared
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
LICENCE = "Cedars-Sinai Academic Software License: non-commercial, no transfer to others"
TERMS = """\
The reports and embeddings come from EchoPrime, from which echovlm takes them, too. EchoPrime's
LICENSE file is the Cedars-Sinai Academic Software License. It allows non-commercial research, and
forbids passing the software and what is derived from it on to others. Do not pass on this folder.
Before you share a model that was trained on it, read that licence."""
README = """\
# Studies of {name}

Written by `python -m xraygpt.convert_echo` (xraygpt {version}) from:

{files}

## Licence

{terms}

Research use only. Not a medical device: never for diagnosis or treatment.

## Content

- {summary}

`{table}` has a line for each study; `row` is its row in `{arrays}`. `{unknown}` stands for a value
that the source does not give.

## In a YAML file

```yaml
{stanza}```
"""


def convert(args: argparse.Namespace) -> str:
    """Convert a source and return a message about what was written.

    Args:
        args: Options of `python -m xraygpt.convert_echo`.

    Raises:
        InputError: An option is invalid, a file is damaged or contains code, or studies are faulty.
    """
    kind = detect_source(args.source) if args.origin == "auto" else args.origin
    paths = EchoPaths(args.source, args.phrases, tuple(args.embeddings))
    if kind == "echovlm":
        source = read_echovlm(paths)
    else:
        try:
            slots = Slots(args.number_slot, tuple(args.text_slots), args.single_value)
        except SettingsError as error:
            raise InputError(error.as_options()) from None
        source = read_echoprime(paths, slots)
    writer = _Writer(source, args.out, skip_faulty=args.skip_faulty)
    facts = {"converted": [f.name for f in source.files], "xraygpt": __version__}
    publish_folder(args.out, writer.write, facts)
    return f"{args.out}: {writer.summary()}"


class _Writer:
    """Writes one source into a new folder.

    Args:
        source: The source.
        out: The folder under its final name, for the YAML stanza.
        skip_faulty: Whether faulty studies are left out instead of refused.
    """

    def __init__(self, source: EchoSource, out: Path, *, skip_faulty: bool) -> None:
        self.source, self.out, self.skip_faulty = source, out, skip_faulty
        self.faults: list[str] = []
        self.splits: Counter[str] = Counter()
        self.samples: list[str] = []
        self.notes: list[str] = []
        first = source.embeddings[0]
        self.shape = sum(map(len, source.embeddings)), first.shape[1]

    def write(self, folder: Path) -> None:
        """Write all files."""
        not_finite = write_rows(folder / ARRAYS, self.source.embeddings)
        self.source.embeddings.clear()  # before the reports are loaded
        self._write_table(folder / TABLE, not_finite)
        release_freed_memory()
        if self.source.tokenizer is not None:
            (folder / "tokenizer").mkdir()
            self._write_tokenizer(folder / "tokenizer", self.source.tokenizer)
        if self.source.view_weights is not None:
            shutil.copyfile(self.source.view_weights, folder / self.source.view_weights.name)
        (folder / STANZA).write_text(self._stanza(), encoding="utf-8")
        (folder / "README.md").write_text(self._readme(), encoding="utf-8")

    def _write_table(self, path: Path, not_finite: np.ndarray) -> None:
        with path.open("w", encoding="utf-8") as file:
            for study in self.source.studies:
                fault = study.fault
                if not fault and not_finite[study.row["row"]]:
                    fault = f"study {study.row['study']}: its embedding is NaN or infinite"
                if fault:
                    self.faults.append(fault)
                    continue
                self.splits[study.row.get("split", "")] += 1
                if len(self.samples) < CHECKED_TEXTS:
                    self.samples.append(study.row["report"])
                file.write(json.dumps(study.row, ensure_ascii=False) + "\n")
        if self.faults and not self.skip_faulty:
            raise DataError(
                f"{len(self.faults)} studies cannot be used: {'; '.join(self.faults[:3])}. "
                "--skip-faulty leaves them out"
            )
        if not sum(self.splits.values()):
            raise DataError("no study can be used")

    def _write_tokenizer(self, folder: Path, data: TiktokenData) -> None:
        content = tokenizer_json(data)
        different = count_differences(data, content, self.samples)
        if different:
            raise DataError(
                f"the tokenizer cannot be converted: {different} of {len(self.samples)} reports "
                "get other ids"
            )
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(tokenizer_config(data), encoding="utf-8")
        lengths = torch.tensor(data.byte_lengths(), dtype=torch.int32)
        save_file({"token_bytes": lengths}, folder / "token_bytes.safetensors")
        self.notes.append(f"tokenizer with {len(lengths):,} ids")
        given = self.source.token_bytes
        if given is not None and given.shape != lengths.shape:
            self.notes.append(f"token_bytes.pt has {given.numel():,} tokens and was ignored")
        elif given is not None and (wrong := int((given != lengths).sum())):
            self.notes.append(
                f"token_bytes.pt has wrong numbers of bytes for {wrong:,} tokens; "
                "token_bytes.safetensors has the true ones"
            )

    def summary(self) -> str:
        """Return what was written, as one line for each kind of content."""
        splits = ", ".join(f"{n:,} {s or 'studies'}" for s, n in sorted(self.splits.items()))
        lines = [f"{splits}; embeddings of width {self.shape[1]}", *self.notes]
        if self.faults:
            lines.append(f"{len(self.faults):,} faulty studies were left out: {self.faults[0]}")
        lines += [
            f"{count:,} {name}" for name, count in sorted(self.source.counts.items()) if count
        ]
        return "\n".join(lines)

    def _stanza(self) -> str:
        if self.source.has_splits:
            split: dict[str, object] = {"field": "split"}
        else:
            split = {"field": None, "val_fraction": 0.01, "test_fraction": 0.01}
            split["near_duplicates"] = 0.9
        corpus = {
            "builder": "studies",
            "storage": str(self.out.absolute()),
            "annotations": TABLE,
            "embeddings": ARRAYS,
            "licence": LICENCE,
            "split": split,
        }
        return yaml.safe_dump({"datasets": {"echo": corpus}}, sort_keys=False)

    def _readme(self) -> str:
        files = "\n".join(f"- {path.name}" for path in self.source.files)
        return README.format(
            name=self.source.name,
            version=__version__,
            files=files,
            terms=TERMS,
            summary=self.summary().replace("\n", "\n- "),
            table=TABLE,
            arrays=ARRAYS,
            unknown=UNKNOWN,
            stanza=self._stanza(),
        )


def write_rows(path: Path, parts: Sequence[Tensor]) -> np.ndarray:
    """Write tensors one after the other as the rows of one tensor in a `.safetensors` file.

    Only `CHUNK` rows are in memory at a time. Types other than 16- or 32-bit floating-point numbers
    are written as float32.

    Args:
        path: The file.
        parts: Tensors of shape (n, D) and the same D.

    Returns:
        Whether each row contains NaN or infinity, (n,).
    """
    dtypes = {part.dtype for part in parts}
    dtype = next(iter(dtypes)) if len(dtypes) == 1 and dtypes <= set(_DTYPES) else torch.float32
    rows, width = sum(map(len, parts)), parts[0].shape[1]
    size = rows * width * dtype.itemsize
    entry = {"dtype": _DTYPES[dtype], "shape": [rows, width], "data_offsets": [0, size]}
    header = json.dumps({"embeddings": entry}).encode()
    header += b" " * (-len(header) % 8)
    faulty = []
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for chunk in rows_of(parts, CHUNK):
            values = chunk.to(dtype)
            faulty.append(~torch.isfinite(values).all(dim=1).numpy())
            file.write(values.view(torch.uint8).numpy().tobytes())
    return np.concatenate(faulty)
