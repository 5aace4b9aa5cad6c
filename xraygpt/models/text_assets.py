"""What a checkpoint keeps of a model's text: its tokenizer, and how prompts are written.

With them a model is whole without the corpus its tokenizer was learned from, and without the file
its prompts came from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from xraygpt.common.errors import WeightsError
from xraygpt.models.weights.files import weight_source
from xraygpt.prompting.renderer import PromptRenderer

RENDERER = "renderer.json"
TOKENIZER_FOLDERS = ("", "llm", "tokenizer")  # where checkpoints keep a tokenizer, oldest first


def assets_of(ckpt: Path | None) -> Path | None:
    """The folder beside the weights that `ckpt` means; None if there is none.

    Raises:
        WeightsError: No checkpoint there can be used.
    """
    if ckpt is None:
        return None
    source = weight_source(ckpt)
    folder = source if source.is_dir() else source.parent
    return folder if folder.is_dir() else None


def saved_tokenizer(folder: Path | None) -> PreTrainedTokenizerFast | None:
    """The tokenizer that a checkpoint holds; None if it holds none.

    Raises:
        WeightsError: The file is damaged.
    """
    if folder is None:
        return None
    for place in TOKENIZER_FOLDERS:
        file = folder / place / "tokenizer.json"
        if file.is_file():
            try:
                found = PreTrainedTokenizerFast.from_pretrained(file.parent, local_files_only=True)
            except Exception as error:  # the library raises of many kinds
                raise WeightsError(f"{file} is damaged: {error}") from None
            assert isinstance(found, PreTrainedTokenizerFast)
            return found
    return None


def write_renderer(folder: Path, renderer: PromptRenderer) -> None:
    """Note template, prompts, ending and length of a model's text."""
    about = {
        "prompt_template": renderer.name,
        "prompts": renderer.prompts,
        "end_sym": renderer.end_sym,
        "max_txt_len": renderer.max_txt_len,
    }
    (folder / RENDERER).write_text(json.dumps(about, indent=1), encoding="utf-8")


def saved_prompts(folder: Path | None) -> list[str] | None:
    """The prompts that a checkpoint's model was trained with; None if it does not say."""
    try:
        about: Any = json.loads(((folder or Path()) / RENDERER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    prompts = about.get("prompts") if isinstance(about, dict) else None
    return [str(p) for p in prompts] if folder is not None and isinstance(prompts, list) else None
