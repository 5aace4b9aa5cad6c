"""Answer requests with MedGemma 4B, a Gemma 3 model for medical text and images.

The model card of google/medgemma-4b-it documents the calls: the chat template of its processor, and
greedy decoding. The weights (8.6 GB) are gated: accept the Health AI Developer Foundations terms on
the model page and log in with ``huggingface-cli login``. The default revision is a commit that
several public projects pin; the Hub itself could not be asked.

The questions are sent as they are. The model card's example has a system message; give yours with
--system. Not run here, for lack of the weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol import run

MODEL = "google/medgemma-4b-it"
REVISION = "290cda5eeccbee130f987c4ad74a59ae6f196408"
TASKS = ["report_generation", "abnormality_classification", "conversation"]


def parse_args() -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=MODEL, help="repository on the Hub, or folder")
    parser.add_argument("--revision", help="commit or tag; default: pinned, or main for others")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--system", default="", help="system message")
    args = parser.parse_args()
    args.revision = args.revision or (REVISION if args.model == MODEL else "main")
    return args


def messages_of(request: dict, system: str) -> list:
    """Return the dialogue in the form of the chat template, with the images in the first turn."""
    from PIL import Image

    messages = []
    if system:
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    images = [Image.open(path).convert("RGB") for path in request["images"]]
    for turn in request["turns"]:
        content = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": turn["text"]})
        messages.append({"role": turn["role"], "content": content})
        images = []
    return messages


class Model:
    """The model and its processor."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.args = args
        self.dtype = getattr(torch, args.dtype)
        self.processor = AutoProcessor.from_pretrained(args.model, revision=args.revision)
        self.model = AutoModelForImageTextToText.from_pretrained(
            args.model, revision=args.revision, torch_dtype=self.dtype
        )
        self.model.to(args.device).eval()

    def answer(self, request: dict) -> dict:
        """Return the text that follows the dialogue."""
        import torch

        inputs = self.processor.apply_chat_template(
            messages_of(request, self.args.system),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.args.device, dtype=self.dtype)
        limit = request.get("max_new_tokens") or self.args.max_new_tokens
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        new = output[0][inputs["input_ids"].shape[-1] :]
        return {"text": self.processor.decode(new, skip_special_tokens=True).strip()}


def main() -> None:
    """Load the model and serve."""
    run(Model, parse_args(), TASKS)


if __name__ == "__main__":
    main()
