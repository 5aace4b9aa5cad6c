"""The models that `python -m xraygpt.download` knows by a short name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """A model with a short name.

    Attributes:
        repo: Owner and name on the hub.
        use: The YAML settings that use the model; ``{}`` is replaced by its folder.
        licence: The licence as stated by the model's authors.
        gigabytes: Approximate size of the downloaded files.
    """

    repo: str
    use: str
    licence: str
    gigabytes: float


_STOCK = "model.arch: stock_vlm and model.path: {}"

# The sizes of vision-language models are the number of weights times two bytes; that of CMR-VL
# assumes 7 billion weights, since its files could not be seen. Check licences at the source.
SETS = {
    "vicuna-7b": Weights(
        "lmsys/vicuna-7b-v1.5", "model.llama_model: {}", "Llama 2 Community License", 13.5
    ),
    "vicuna-13b": Weights(
        "lmsys/vicuna-13b-v1.5", "model.llama_model: {}", "Llama 2 Community License", 26.0
    ),
    "smollm2": Weights(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "model.llama_model: {}", "Apache-2.0", 0.3
    ),
    "blip2-opt": Weights(
        "Salesforce/blip2-opt-2.7b",
        "model.vit_ckpt: {0} and model.q_former_model: {0}",
        "MIT",
        15.0,
    ),
    "instructblip-7b": Weights(
        "Salesforce/instructblip-vicuna-7b",
        "python -m xraygpt.convert {} OUT, then model.ckpt and model.llama_model",
        "research only: LLaMA, Vicuna and LLaVA data",
        31.7,
    ),
    "biomedclip": Weights(
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "model.vit_model: biomedclip and model.vit_ckpt: {}",
        "MIT",
        0.8,
    ),
    "rad-dino": Weights("microsoft/rad-dino", "model.vit_model: hf/{}", "MIT", 0.35),
    "qwen2-vl-2b": Weights("Qwen/Qwen2-VL-2B-Instruct", _STOCK, "Apache-2.0", 4.4),
    "qwen2.5-vl-3b": Weights(
        "Qwen/Qwen2.5-VL-3B-Instruct", _STOCK, "Qwen Research License: not commercial", 7.5
    ),
    "qwen2.5-vl-7b": Weights("Qwen/Qwen2.5-VL-7B-Instruct", _STOCK, "Apache-2.0", 16.6),
    "qwen3-vl-2b": Weights("Qwen/Qwen3-VL-2B-Instruct", _STOCK, "Apache-2.0", 4.3),
    "qwen3-vl-4b": Weights("Qwen/Qwen3-VL-4B-Instruct", _STOCK, "Apache-2.0", 8.9),
    "qwen3-vl-8b": Weights("Qwen/Qwen3-VL-8B-Instruct", _STOCK, "Apache-2.0", 17.5),
    "llava-onevision-0.5b": Weights(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", _STOCK, "Apache-2.0", 1.8
    ),
    "llava-onevision-7b": Weights(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", _STOCK, "Apache-2.0", 16.1
    ),
    "llava-onevision-7b-si": Weights(
        "llava-hf/llava-onevision-qwen2-7b-si-hf", _STOCK, "Apache-2.0", 16.1
    ),
    "cmr-vl": Weights(
        "EstelleXIA/CMR-VL", _STOCK, "Apache-2.0, but its authors say academic only", 16.6
    ),
    "siglip-so400m": Weights(
        "google/siglip-so400m-patch14-384",
        "model.vit_model: hf/{}, or python -m xraygpt.convert --from llava --vision-tower {}",
        "Apache-2.0",
        3.5,
    ),
}
