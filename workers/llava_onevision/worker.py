"""Answer requests with LLaVA-OneVision 7B, or with a RadVLM checkpoint in the same form.

The model card of llava-hf/llava-onevision-qwen2-7b-si-hf documents the calls: the chat template of
its processor, then LlavaOnevisionForConditionalGeneration. Its weights (16 GB) are Apache-2.0 and
not gated. RadVLM is this architecture; its weights come from PhysioNet, radvlm-model 1.0.0, under a
data use agreement. Give their folder as --model.

Boxes are part of the text, so that only text is returned. The general model takes all tasks, but
was not trained to point at findings. Not run here, for lack of the weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol import run

MODEL = "llava-hf/llava-onevision-qwen2-7b-si-hf"
REVISION = "e362165d227bd9ead0fc8e82d185206febf7dc95"
TASKS = [
    "report_generation",
    "abnormality_classification",
    "region_grounding",
    "abnormality_grounding",
    "abnormality_detection",
    "phrase_grounding",
    "conversation",
]


def parse_args() -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=MODEL, help="repository on the Hub, or folder")
    parser.add_argument("--revision", help="commit or tag; default: pinned, or main for others")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--max-new-tokens", type=int, default=512)
    args = parser.parse_args()
    args.revision = args.revision or (REVISION if args.model == MODEL else "main")
    return args


def messages_of(request: dict) -> list:
    """Return the dialogue in the form of the chat template, with the images in the first turn."""
    messages = []
    images = len(request["images"])
    for turn in request["turns"]:
        content = [{"type": "image"}] * images + [{"type": "text", "text": turn["text"]}]
        messages.append({"role": turn["role"], "content": content})
        images = 0
    return messages


class Model:
    """The model and its processor."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

        self.args = args
        self.dtype = getattr(torch, args.dtype)
        self.processor = AutoProcessor.from_pretrained(args.model, revision=args.revision)
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            args.model, revision=args.revision, torch_dtype=self.dtype, low_cpu_mem_usage=True
        )
        self.model.to(args.device).eval()

    def answer(self, request: dict) -> dict:
        """Return the text that follows the dialogue."""
        import torch
        from PIL import Image

        images = [Image.open(path).convert("RGB") for path in request["images"]]
        prompt = self.processor.apply_chat_template(
            messages_of(request), add_generation_prompt=True
        )
        inputs = self.processor(images=images or None, text=prompt, return_tensors="pt")
        inputs = inputs.to(self.args.device, self.dtype)
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
