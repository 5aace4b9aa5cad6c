"""Exports an `xraygpt` model: XrayGPT's `.pth`, or a transformers BLIP-2 folder with its card."""

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
from xraygpt.common.training_data import manifest_entry
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


def to_pth(model: Composition, out: Path, settings: ExportSettings) -> str:
    """Write a run's weights as XrayGPT and MiniGPT-4 store them: a pickle, ``{"model": {…}}``."""
    _merge_lora(model, settings)
    state = export_names.pth_state(model, with_vision=settings.with_vision)
    llm_note = ""
    if settings.merge_lora or not model.config.llm.freeze:  # the .pth cannot contain an LLM
        folder = out.with_name(f"{out.stem}-llm")
        publish_folder(
            folder, lambda f: write_llm(model.llm, model.tokenizer, f), {"converted": []}
        )
        llm_note = f"; the LLM, which was also trained, is in {folder}"
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        with report_write_errors(out):
            torch.save({"model": {n: t.contiguous() for n, t in state.items()}}, temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return f"{out}: {len(state)} tensors under the names of XrayGPT and MiniGPT-4{llm_note}"


def to_transformers(model: Composition, out: Path, settings: ExportSettings) -> str:
    """Write a folder that `Blip2ForConditionalGeneration.from_pretrained` loads."""
    _merge_lora(model, settings)
    state = export_names.blip2_state(model)
    if settings.dtype:
        dtype = getattr(torch, settings.dtype)
        state = {n: t.to(dtype) for n, t in state.items()}
    effect = export_names.eps_effect(model)
    (log.warning if effect > 1e-4 else log.info)(
        "transformers has one layer-norm eps but BLIP-2 has two: features change by up to %.1e",
        effect,
    )
    image_id, origin = export_names.image_token_id(model, state)
    log.info("image token: %s", origin)
    config = export_names.blip2_config(model, state, image_id)
    processor: Any = export_names.blip2_processor(model, _image_processor(settings), image_id)
    token = processor.image_token.content
    question = (model.renderer.prompts or ["Describe the findings of this chest X-ray."])[0]
    text, ids = export_names.prompt_text(model, question, token)
    retokenized = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    same = retokenized == export_names.with_image_id(ids, image_id)
    if not same:
        log.warning(
            "the tokenizer splits the prompt differently than in training (%d and %d tokens): "
            "pass the ids of prompt.json to generate()",
            len(retokenized),
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
        (folder / "README.md").write_text(
            _card(model, settings.license, token, same), encoding="utf-8"
        )

    facts = {"exported": __version__, "image_token": origin, **manifest_entry(model.trained_on)}
    publish_folder(out, write, facts)
    return f"{out}: load with Blip2ForConditionalGeneration.from_pretrained; {origin}"


def _merge_lora(model: Composition, settings: ExportSettings) -> None:
    if settings.merge_lora:
        merge_lora_weights(model.llm)


def _image_processor(settings: ExportSettings) -> XrayImage:
    if not isinstance(settings.processor, XrayImage):
        name = type(settings.processor).__name__
        raise WeightsError(f"transformers has nothing like the run's vis_processor, {name}")
    return settings.processor


def _card(model: Composition, licence: str, token: str, same: bool) -> str:
    """Compose the README.md of an exported model: hub metadata, an example, the notice."""
    llm = (model.config.llm.source or "a small random LLM").rstrip("/").split("/")[-1]
    count = model.config.qformer.num_queries
    tiny = model.config.vision.encoder == "eva_tiny"
    encoder = "eva_tiny (random, for tests)" if tiny else "EVA-CLIP-g"
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

{encoder}, a Q-Former with {count} queries, a linear projection, and {llm}. The licence above is
this model's; the licences of its parts and training data also apply. Guidance and candidate
selection, which xraygpt offers in decoding, are not part of the export.

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

To ask another question, replace it in `prompt["text"]`, where `{token}` is repeated {count} times
for the image, and tokenize with `add_special_tokens=False`. Bones must be bright in the images.
"""


def write_llm(llm: Any, tokenizer: Any, folder: Path) -> None:
    """Write an LLM and its tokenizer as a transformers folder."""
    llm.config.quantization_config = None  # names the GGUF file it was read from
    llm.config._name_or_path = ""  # a path on this machine
    del llm.config.quantization_config
    llm.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def save_sharded(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors as safetensors files of at most `SHARD`."""
    from huggingface_hub import save_torch_state_dict

    tensors = {n: t.detach().cpu().contiguous() for n, t in state.items()}
    save_torch_state_dict(
        tensors, folder, max_shard_size=SHARD, metadata={"format": "pt"}, filename_pattern=_PATTERN
    )


_PATTERN = WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
