"""An `xraygpt` model written as other projects keep theirs: files, folders, cards."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xraygpt.common.errors import WeightsError
from xraygpt.common.publishing import publish_folder, report_write_errors
from xraygpt.models.capabilities import ExportSettings
from xraygpt.models.llm.small_llm import merge_lora_weights
from xraygpt.models.qformer_llm import export_names
from xraygpt.models.qformer_llm.parts import Composition
from xraygpt.models.weights.files import WEIGHTS
from xraygpt.processors.image import XrayImage
from xraygpt.version import __version__

log = logging.getLogger(__name__)

SHARD = "4GB"
NOTICE = "Research use only. Not a medical device: never for diagnosis or treatment."


def to_pth(model: Composition, out: Path, how: ExportSettings) -> str:
    """A run's weights as the lineage keeps them: one pickle, ``{"model": {...}}``."""
    _merge(model, how)
    state = export_names.pth_state(model, with_vision=how.with_vision)
    more = ""
    if how.merge_lora or not model.config.freeze_llm:  # the .pth has no place for an LLM
        folder = out.with_name(f"{out.stem}-llm")
        publish_folder(
            folder, lambda f: write_llm(model.llm, model.tokenizer, f), {"converted": []}
        )
        more = f"; its LLM, which was trained, is in {folder}"
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        with report_write_errors(out):
            torch.save({"model": {n: t.contiguous() for n, t in state.items()}}, aside)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return f"{out}: {len(state)} tensors under the names of XrayGPT and MiniGPT-4{more}"


def to_transformers(model: Composition, out: Path, how: ExportSettings) -> str:
    """A run as a folder that `Blip2ForConditionalGeneration.from_pretrained` opens."""
    _merge(model, how)
    state = export_names.blip2_state(model)
    if how.dtype:
        dtype = getattr(torch, how.dtype)
        state = {n: t.to(dtype) for n, t in state.items()}
    effect = export_names.eps_effect(model)
    (log.warning if effect > 1e-4 else log.info)(
        "transformers has one layer-norm eps where BLIP-2 has two: features change by up to %.1e",
        effect,
    )
    image_id, origin = export_names.image_token_id(model, state)
    log.info("images take %s", origin)
    config = export_names.blip2_config(model, state, image_id)
    processor: Any = export_names.blip2_processor(model, _picture_processor(how), image_id)
    token = processor.image_token.content
    question = (model.renderer.prompts or ["Describe the findings of this chest X-ray."])[0]
    text, ids = export_names.prompt_text(model, question, token)
    found = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    same = found == export_names.with_image_id(ids, image_id)
    if not same:
        log.warning(
            "the tokenizer splits the prompt's text into other tokens than training did (%d, %d): "
            "pass the ids of prompt.json to generate()",
            len(found),
            len(ids),
        )

    def write(folder: Path) -> None:
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        save_sharded(state, folder)
        prompt = {
            "question": question,
            "text": text,
            "input_ids": export_names.with_image_id(ids, image_id),
            "stop_strings": model.renderer.stop_strings,
            "image_token_id": image_id,
        }
        (folder / "prompt.json").write_text(json.dumps(prompt, indent=1), encoding="utf-8")
        (folder / "README.md").write_text(_card(model, how.license, token, same), encoding="utf-8")

    publish_folder(out, write, {"exported": __version__, "image_token": origin})
    return f"{out}: opens with Blip2ForConditionalGeneration.from_pretrained; {origin}"


def _merge(model: Composition, how: ExportSettings) -> None:
    if how.merge_lora:
        merge_lora_weights(model.llm)


def _picture_processor(how: ExportSettings) -> XrayImage:
    if not isinstance(how.processor, XrayImage):
        raise WeightsError(
            f"the run's vis_processor is {type(how.processor).__name__}, which transformers has not"
        )
    return how.processor


def _card(model: Composition, licence: str, token: str, same: bool) -> str:
    """README.md of an exported model: front matter for the hub, an example, the notice."""
    llm = (model.config.llama_model or "a small one of our own").rstrip("/").split("/")[-1]
    count = model.config.num_query_token
    tiny = model.config.vit_model == "eva_tiny"
    encoder = "eva_tiny (for tests, it sees nothing)" if tiny else "EVA-CLIP-g"
    stops = model.renderer.stop_strings
    ids = (
        "prompt = json.load(open(f'{folder}/prompt.json'))"
        if same
        else "prompt = json.load(open(f'{folder}/prompt.json'))  # take its ids: its text differs"
    )
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
license: {licence}
tags: [medical, radiology, blip-2, xraygpt]
---

# A chest X-ray model made with xraygpt

**{NOTICE}**

{encoder}, a Q-Former of {count} queries, a linear layer, and {llm}. The licence above is this
model's; those of its parts and of the data it was trained on hold too. Guidance and votes, which
xraygpt offers in decoding, are not part of the export.

```python
import json
import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

folder = "."  # this folder
model = Blip2ForConditionalGeneration.from_pretrained(folder)
processor = Blip2Processor.from_pretrained(folder)
{ids}
ids = torch.tensor([prompt["input_ids"]])
pixels = processor.image_processor(Image.open("chest.png").convert("RGB"), return_tensors="pt")
out = model.generate(
    pixels["pixel_values"], input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=160,
    do_sample=False, suppress_tokens=[prompt["image_token_id"]],
    stop_strings={stops!r}, tokenizer=processor.tokenizer,
)
print(processor.tokenizer.decode(out[0], skip_special_tokens=True))
```

Another question goes into `prompt["text"]`, in which `{token}` stands {count} times for the image;
tokenise it with `add_special_tokens=False`. Pictures are to be shown bones bright.
"""


def write_llm(llm: Any, tokenizer: Any, folder: Path) -> None:
    """An LLM and its tokenizer as a transformers folder."""
    llm.config.quantization_config = None  # of the GGUF it was read from
    llm.config._name_or_path = ""  # a path of this machine
    del llm.config.quantization_config
    llm.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def save_sharded(state: Mapping[str, Tensor], folder: Path) -> None:
    """Tensors as safetensors, in files of at most `SHARD`."""
    from huggingface_hub import save_torch_state_dict

    whole = {n: t.detach().cpu().contiguous() for n, t in state.items()}
    save_torch_state_dict(
        whole, folder, max_shard_size=SHARD, metadata={"format": "pt"}, filename_pattern=_PATTERN
    )


_PATTERN = WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
