"""Exports a prefix language model as a folder that transformers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from xraygpt.common.errors import WeightsError
from xraygpt.common.publishing import publish_folder
from xraygpt.common.training_data import manifest_entry
from xraygpt.models.capabilities import ExportSettings
from xraygpt.models.llm.small_llm import merge_lora_weights
from xraygpt.version import __version__

if TYPE_CHECKING:
    from xraygpt.models.prefix_lm.model import PrefixLM

PROJECTOR, PREFIX = "projector.safetensors", "prefix.json"
NOTICE = "Research use only. Not a medical device: never for diagnosis or treatment."


def to_transformers(model: PrefixLM, out: Path, settings: ExportSettings) -> str:
    """Write the language model, its tokenizer, the projector and a card.

    Args:
        model: The model; LoRA is merged into the weights if the settings say so.
        out: The folder to create.
        settings: The dtype and the license.

    Returns:
        A one-line description of what was written.

    Raises:
        WeightsError: The weights are quantized, or adapters would be lost.
    """
    config = model.config
    if config.llm.bits or config.llm.low_resource:
        raise WeightsError("a quantized model cannot be exported: load it without model.llm.bits")
    if config.llm.lora is not None:
        if not settings.merge_lora:
            raise WeightsError("the folder cannot contain LoRA by itself: pass --merge-lora")
        merge_lora_weights(model.llm)
    if config.llm.size.rope_dtype != "float32" and config.llm.source is None:
        raise WeightsError(
            "transformers computes positions in float32, but this model was trained with positions "
            "rounded to bfloat16 (model.llm.size.rope_dtype), so that its logits would differ"
        )
    dtype = getattr(torch, settings.dtype) if settings.dtype else torch.float32

    def write(folder: Path) -> None:
        llm: Any = model.llm
        attention, llm.config._attn_implementation = llm.config._attn_implementation, "sdpa"
        try:
            state = {n: t.to(dtype).contiguous() for n, t in llm.state_dict().items()}
            llm.save_pretrained(folder, state_dict=state)
        finally:
            llm.config._attn_implementation = attention
        model.tokenizer.save_pretrained(folder)
        projector = {n: t.float().contiguous() for n, t in model.projector.state_dict().items()}
        if model.projector.mean is not None:
            projector["mean"] = model.projector.mean
        if projector:
            save_file(projector, folder / PROJECTOR)
        text = json.dumps(_description(model), indent=1)
        (folder / PREFIX).write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(_card(model, settings.license), encoding="utf-8")

    publish_folder(out, write, {"exported": __version__, **manifest_entry(model.trained_on)})
    return f"{out}: load with AutoModelForCausalLM.from_pretrained; README.md has an example"


def _description(model: PrefixLM) -> dict[str, Any]:
    """Return what a program needs to know in addition to the weights."""
    prefix = model.config.prefix
    turns = [{"role": "user", "text": ""}]
    ids = model.renderer.render(turns, [])["input_ids"]  # type: ignore[arg-type]
    return {
        "width": prefix.width,
        "views": ["", *prefix.views],
        "types": ["", *prefix.types],
        "normalize": prefix.normalize,
        "positions": prefix.positions,
        "prompt_ids": ids,
        "stop_strings": model.renderer.stop_strings,
    }


def _card(model: PrefixLM, licence: str) -> str:
    """Compose the README.md: hub metadata, an example, the notice."""
    return f"""---
license: {licence}
library_name: transformers
tags: [medical]
---

{NOTICE}

A language model that writes a report from the embeddings of a study ({model.facts()["LLM"]}).
`{PREFIX}` lists the width of the embeddings, the names of views and types, and the prompt; the
first row of a table in `{PROJECTOR}` belongs to all other names.

```python
import json
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

llm = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
prefix = json.load(open("{PREFIX}"))
study = torch.randn(1, prefix["width"])      # one embedding; below, how to use several
tokens = normalize(study, dim=-1) if prefix["normalize"] else study
{_projection(model)}
prompt = llm.get_input_embeddings()(torch.tensor(prefix["prompt_ids"]))
embeds = torch.cat([tokens, prompt])[None]
mask = torch.ones(embeds.shape[:2])
ids = llm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=300)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

With several embeddings, all of them have position 0 and see each other, and the text is numbered
from 1. `generate` numbers them like tokens instead: pass `position_ids` and a mask of shape
(1, 1, T, T) to `llm` yourself, or use xraygpt.
"""


def _projection(model: PrefixLM) -> str:
    """Return the lines of the example that project an embedding."""
    lines = []
    if model.projector.mean is not None or model.config.prefix.projection == "linear":
        lines.append(f'weights = load_file("{PROJECTOR}")')
    if model.projector.mean is not None:
        lines.append('tokens = normalize(tokens - weights["mean"], dim=-1)')
    if model.config.prefix.projection == "linear":
        lines.append('tokens = tokens @ weights["linear.weight"].T')
    for name, column in (("view_table", "view"), ("type_table", "type")):
        if hasattr(model.projector, name):
            lines.append(f'tokens = tokens + weights["{name}.weight"][0]  # any other {column}')
    return "\n".join(lines)
