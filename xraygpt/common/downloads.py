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
}
