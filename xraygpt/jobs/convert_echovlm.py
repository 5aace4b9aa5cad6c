"""Converts a checkpoint of echovlm and its tokenizer to a folder for `model.ckpt`."""

from __future__ import annotations

from pathlib import Path

import yaml
from safetensors.torch import save_file

from xraygpt.common.checkpoint import file_sha256
from xraygpt.common.errors import WeightsError
from xraygpt.common.publishing import publish_folder
from xraygpt.jobs.echo_sources import load_tokenizer
from xraygpt.models.prefix_lm import echovlm
from xraygpt.models.weights.files import WEIGHTS
from xraygpt.prompting.tiktoken_bpe import tokenizer_config, tokenizer_json
from xraygpt.version import __version__

SETTINGS = "model.yaml"
TERMS = (
    "echovlm trains on reports and embeddings of EchoPrime, whose licence forbids passing on what "
    "is derived from it: check it before you share these weights"
)


def convert_checkpoint(source: Path, out: Path, tokenizer: Path | None = None) -> str:
    """Write the weights, the tokenizer, and the `model` section of a YAML file.

    Args:
        source: A run folder of echovlm, or its ``checkpoint*.pt``.
        out: The folder to create.
        tokenizer: ``tokenizer.pkl``; None looks in ``tokenizer/`` beside the run folder.

    Returns:
        A message about what was written.

    Raises:
        WeightsError: There is no checkpoint or no tokenizer, or they do not belong together.
    """
    file = echovlm.find_checkpoint(source)
    if file is None:
        raise WeightsError(f"{source} contains no checkpoint*.pt")
    state, settings = echovlm.read_checkpoint(file)
    path = tokenizer or _find_tokenizer(file)
    data = load_tokenizer(path)
    size = settings["llm"]["size"]["vocab_size"]
    if len(data.byte_lengths()) != size:
        raise WeightsError(
            f"{path} has {len(data.byte_lengths()):,} tokens, but the vocabulary of {file} has "
            f"{size:,}: pass the tokenizer that it was trained with as --tokenizer"
        )
    settings = {**settings, "ckpt": str(out)}

    def write(folder: Path) -> None:
        save_file(state, folder / WEIGHTS)
        (folder / "llm").mkdir()
        (folder / "llm/tokenizer.json").write_text(tokenizer_json(data), encoding="utf-8")
        (folder / "llm/tokenizer_config.json").write_text(tokenizer_config(data), encoding="utf-8")
        text = yaml.safe_dump({"model": settings}, sort_keys=False)
        (folder / SETTINGS).write_text(text, encoding="utf-8")

    sources = [{"name": f.name, "sha256": file_sha256(f)} for f in (file, path)]
    publish_folder(out, write, {"converted": sources, "xraygpt": __version__})
    return (
        f"{out}: a decoder with {sum(t.numel() for t in state.values()) / 1e6:.1f} M weights and "
        f"its tokenizer; {out / SETTINGS} is the model section of a YAML file. {TERMS}"
    )


def _find_tokenizer(file: Path) -> Path:
    for folder in (file.parent.parent, file.parent):
        path = folder / "tokenizer" / "tokenizer.pkl"
        if path.is_file():
            return path
    raise WeightsError(
        f"there is no tokenizer/tokenizer.pkl beside {file.parent}: pass it as --tokenizer"
    )
