"""Weights into our layout, and ours into others': python -m xraygpt.convert SOURCE OUT.

any weights -> a folder here:  python -m xraygpt.convert eva_vit_g.pth weights/eva
ours -> the lineage's .pth:    python -m xraygpt.convert output/my_run/best my.pth --to pth
ours -> plain transformers:    python -m xraygpt.convert output/my_run/best out --to transformers
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xraygpt import __version__
from xraygpt.common.checkpoint import digest, find_checkpoint, is_run_like, manifest_of, seal
from xraygpt.common.cli import guarded
from xraygpt.common.config import load
from xraygpt.common.errors import WeightsError
from xraygpt.common.publishing import publish_folder, refuse_taken, writing
from xraygpt.experiment import Training
from xraygpt.models import encoders, exchange, lineage, llm_files
from xraygpt.models.language import fold_lora
from xraygpt.models.published import is_eva
from xraygpt.models.weight_files import WEIGHTS, is_converted, read_state_dict, weight_files
from xraygpt.models.weights import Account
from xraygpt.models.xraygpt import XrayGPT
from xraygpt.processors.image import XrayImage
from xraygpt.runners.state import load_weights

log = logging.getLogger(__name__)

SHARD = "4GB"
NOTICE = "Research use only. Not a medical device: never for diagnosis or treatment."


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file, folder, run of ours, or package:<name> for its GGUF")
    parser.add_argument("out", type=Path, help="folder to make; a file for --to pth")
    parser.add_argument("--to", choices=("xraygpt", "pth", "transformers"), default="xraygpt")
    parser.add_argument("--vit-model", help="which encoder a file holds, if its names do not say")
    parser.add_argument("--merge-lora", action="store_true", help="add LoRA to the LLM's weights")
    parser.add_argument("--with-vision", action="store_true", help="--to pth: the encoder too")
    parser.add_argument("--license", default="other", help="for the model card, e.g. llama2")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="--to transformers: of all"
    )
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="KEY=VALUE", help="change the run's settings"
    )
    given = parser.parse_args()
    refuse_taken(given.out)
    done = {"xraygpt": to_ours, "pth": to_pth, "transformers": to_transformers}[given.to](given)
    sys.stdout.write(f"{done}\n")


# --- into our layout ---------------------------------------------------------------------------


def to_ours(given: argparse.Namespace) -> str:
    """Another project's weights as safetensors and a manifest.

    Raises:
        WeightsError: They are damaged, of no known kind, or ours already.
    """
    source = given.source
    if source.startswith(llm_files.PACKAGE) or source.endswith(".gguf"):
        return _llm_folder(given)
    path = Path(source)
    config = _config_of(path)
    if "text_config" not in config and str(config.get("architectures", "")).find("CausalLM") > 0:
        return _llm_folder(given)
    if "exported" in manifest_of(path):
        raise WeightsError(f"{path} was exported from a run of ours: it opens in transformers")
    if is_converted(path):
        raise WeightsError(f"{path} was converted already: it stands wherever the original may")
    if not path.is_file() and is_run_like(path):
        raise WeightsError(f"{path} is a run of ours already; --to pth or --to transformers?")
    files = weight_files(path)
    state = read_state_dict(path)
    account, vit_model = _account(state, path, given.vit_model)
    parts = sorted({name.split(".")[0] for name in account.state})
    language = {n: t for n, t in state.items() if n.startswith("language_model.")}
    if language and not path.is_dir():
        raise WeightsError(
            f"{path} holds an LLM too, whose configuration lies in its folder: name that"
        )

    def write(folder: Path) -> None:
        _save(account.state, folder)
        if language:
            (folder / "llm").mkdir()
            _save_llm(language, path, folder / "llm")
            seal(folder / "llm", converted=sources)

    sources = [{"name": f.name, "size": f.stat().st_size, "sha256": digest(f)} for f in files]
    facts = {
        "converted": sources,
        "parts": parts,
        "vit_model": vit_model,
        "rules": dict(account.applied),
        "left_out": {why: len(keys) for why, keys in account.dropped.items()},
        "xraygpt": __version__,
    }
    publish_folder(given.out, write, facts)
    more = f"; its LLM is in {given.out / 'llm'}" if language else ""
    return f"{given.out}: {', '.join(parts)}; {account}{more}"


def _account(
    state: Mapping[str, Tensor], path: Path, vit_model: str | None
) -> tuple[Account, str | None]:
    """What becomes of a file's keys, and the encoder it holds."""
    names = [name.removeprefix("module.") for name in state]
    bare = any(n.startswith("blocks.") for n in names)  # a ViT alone; EVA's has no bias for the key
    if lineage.is_lineage(state) and (not bare or any(n.endswith(".attn.q_bias") for n in names)):
        text = any("word_embeddings" in name for name in state)
        account = lineage.translate(state, path, text=text)
        holds = any(name.startswith("vision.") for name in account.state)
        if holds and vit_model is not None and not is_eva(vit_model):
            raise WeightsError(f"{path} holds an EVA-CLIP-g, not {vit_model}")
        return account, (vit_model or "eva_clip_g") if holds else None
    kind = vit_model or encoders.recognised(names)
    if kind is None:
        raise WeightsError(
            f"{path}: its names ({', '.join(names[:3])}, …) are of no project known here; "
            "name the encoder with --vit-model timm/<name>"
        )
    encoders.build_vision(kind, None, path)  # refuses what does not fit
    account = encoders.account_of(kind, path)
    account.state = {f"vision.net.{n}": t for n, t in account.state.items()}
    return account, kind


def _llm_folder(given: argparse.Namespace) -> str:
    """An LLM as a transformers folder: plain weights, read faster than a GGUF."""
    llm, tokenizer = llm_files.load_llm(given.source, given.dtype or "float32")

    publish_folder(
        given.out,
        lambda folder: _write_llm(llm, tokenizer, folder),
        {"converted": [_llm_source(given.source)]},
    )
    return f"{given.out}: an LLM for model.llama_model"


def _llm_source(source: str) -> dict[str, Any]:
    folder, gguf = llm_files.locate(source)
    files = [folder / gguf] if gguf else weight_files(folder, check=False)
    return {"name": Path(source).name, "sha256": {f.name: digest(f) for f in files}}


def _write_llm(llm: Any, tokenizer: Any, folder: Path) -> None:
    llm.config.quantization_config = None  # of the GGUF it was read from
    llm.config._name_or_path = ""  # a path of this machine
    del llm.config.quantization_config
    llm.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def _save_llm(state: Mapping[str, Tensor], source: Path, folder: Path) -> None:
    """The LLM inside a BLIP-2 folder as a folder of its own."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        text: Any = AutoConfig.from_pretrained(source, **llm_files.LOCAL).text_config
    except llm_files.BROKEN as error:
        raise WeightsError(f"{source}: no usable config.json: {error}") from None
    text.save_pretrained(folder)
    _save({n.removeprefix("language_model."): t for n, t in state.items()}, folder)
    try:
        AutoTokenizer.from_pretrained(source, **llm_files.LOCAL).save_pretrained(folder)
    except llm_files.BROKEN:
        log.warning("%s holds no tokenizer; put the LLM's into %s/llm", source, folder.parent)


# --- ours into others' -------------------------------------------------------------------------


def to_pth(given: argparse.Namespace) -> str:
    """A run's weights as the lineage keeps them: one pickle, ``{"model": {...}}``."""
    model, _ = _trained(given)
    state = exchange.pth_state(model, with_vision=given.with_vision)
    out = given.out
    more = ""
    if given.merge_lora or not model.config.freeze_llm:  # the .pth has no place for an LLM
        folder = out.with_name(f"{out.stem}-llm")
        publish_folder(
            folder, lambda f: _write_llm(model.llm, model.tokenizer, f), {"converted": []}
        )
        more = f"; its LLM, which was trained, is in {folder}"
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        with writing(out):
            torch.save({"model": {n: t.contiguous() for n, t in state.items()}}, aside)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return f"{out}: {len(state)} tensors under the names of XrayGPT and MiniGPT-4{more}"


def to_transformers(given: argparse.Namespace) -> str:
    """A run as a folder that `Blip2ForConditionalGeneration.from_pretrained` opens."""
    model, experiment = _trained(given)
    state = exchange.blip2_state(model)
    if given.dtype:
        dtype = getattr(torch, given.dtype)
        state = {n: t.to(dtype) for n, t in state.items()}
    effect = exchange.eps_effect(model)
    (log.warning if effect > 1e-4 else log.info)(
        "transformers has one layer-norm eps where BLIP-2 has two: features change by up to %.1e",
        effect,
    )
    image_id, origin = exchange.image_token_id(model, state)
    log.info("images take %s", origin)
    config = exchange.blip2_config(model, state, image_id)
    processor: Any = exchange.blip2_processor(model, _image_processor(experiment, model), image_id)
    token = processor.image_token.content
    question = (model.renderer.prompts or ["Describe the findings of this chest X-ray."])[0]
    text, ids = exchange.prompt_text(model, question, token)
    found = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    same = found == exchange.with_image_id(ids, image_id)
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
        _save(state, folder)
        prompt = {
            "question": question,
            "text": text,
            "input_ids": exchange.with_image_id(ids, image_id),
            "stop_strings": model.renderer.stop_strings,
            "image_token_id": image_id,
        }
        (folder / "prompt.json").write_text(json.dumps(prompt, indent=1), encoding="utf-8")
        (folder / "README.md").write_text(
            _card(model, given.license, token, same), encoding="utf-8"
        )

    publish_folder(given.out, write, {"exported": __version__, "image_token": origin})
    return f"{given.out}: opens with Blip2ForConditionalGeneration.from_pretrained; {origin}"


def _image_processor(experiment: Training, model: XrayGPT) -> XrayImage:
    """How the run's pictures are made outside training; the first corpus' if they differ."""
    made = [
        c.build(image_spec=model.image_spec).processor("vis", "eval")
        for c in experiment.datasets.values()
    ]
    if len({json.dumps(p.signature(), sort_keys=True, default=str) for p in made}) > 1:
        log.warning("the run's corpora have different vis_processors; the first is exported")
    if not isinstance(made[0], XrayImage):
        raise WeightsError(
            f"the run's vis_processor is {type(made[0]).__name__}, which transformers has not"
        )
    return made[0]


def _trained(given: argparse.Namespace) -> tuple[XrayGPT, Training]:
    """The model of a run, by the configuration beside its weights."""
    checkpoint = find_checkpoint(Path(given.source))
    experiment = load(Training, checkpoint / "config.yaml", [*given.options, "model.ckpt=null"])
    model = experiment.model.build(texts=list)
    if not isinstance(model, XrayGPT):
        raise WeightsError(
            f"{given.source} is a run of {type(model).__name__}, which is no image model; a run "
            "of the task language_modeling holds a transformers folder already (llm/)"
        )
    load_weights(model, checkpoint)
    model.eval()
    if given.merge_lora:
        fold_lora(model.llm)
    return model, experiment


def _card(model: XrayGPT, licence: str, token: str, same: bool) -> str:
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


# --- writing -----------------------------------------------------------------------------------


def _save(state: Mapping[str, Tensor], folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    whole = {n: t.detach().cpu().contiguous() for n, t in state.items()}
    save_torch_state_dict(
        whole, folder, max_shard_size=SHARD, metadata={"format": "pt"}, filename_pattern=_PATTERN
    )


_PATTERN = WEIGHTS.replace(".safetensors", "{suffix}.safetensors")


def _config_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


if __name__ == "__main__":
    sys.exit(guarded(main))
