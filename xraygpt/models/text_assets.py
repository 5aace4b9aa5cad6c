"""Reads and writes a checkpoint's tokenizer and prompts.

With these, loading a checkpoint needs neither the corpus that its tokenizer was trained on nor the
file of prompts.
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
TOKENIZER_FOLDERS = ("", "llm", "tokenizer")  # of a checkpoint, from the oldest layout on


def checkpoint_assets(ckpt: Path | None) -> Path | None:
    """Return the folder with the weights at `ckpt`, tokenizer and prompts; None without `ckpt`.

    Raises:
        WeightsError: There is no usable checkpoint.
    """
    if ckpt is None:
        return None
    source = weight_source(ckpt)
    folder = source if source.is_dir() else source.parent
    return folder if folder.is_dir() else None


def saved_tokenizer(folder: Path | None) -> PreTrainedTokenizerFast | None:
    """Load a checkpoint's tokenizer; None if there is none.

    Raises:
        WeightsError: The file is damaged.
    """
    if folder is None:
        return None
    for subfolder in TOKENIZER_FOLDERS:
        file = folder / subfolder / "tokenizer.json"
        if file.is_file():
            try:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(
                    file.parent, local_files_only=True
                )
            except Exception as error:  # the library raises many exception types
                raise WeightsError(f"{file} is damaged: {error}") from None
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            return tokenizer
    return None


def write_renderer(folder: Path, renderer: PromptRenderer) -> None:
    """Save the template, the prompts, the end of answers and the maximum length."""
    content = {
        "prompt_template": renderer.template_name,
        "prompts": renderer.prompts,
        "end_sym": renderer.end_sym,
        "max_txt_len": renderer.max_txt_len,
    }
    (folder / RENDERER).write_text(json.dumps(content, indent=1), encoding="utf-8")


def saved_prompts(folder: Path | None) -> list[str] | None:
    """Return the prompts that a checkpoint was trained with; None if they were not saved."""
    if folder is None:
        return None
    try:
        content: Any = json.loads((folder / RENDERER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    prompts = content.get("prompts") if isinstance(content, dict) else None
    return [str(p) for p in prompts] if isinstance(prompts, list) else None
