"""Answer requests with MAIRA-2, which writes findings of chest X-rays and locates phrases.

The model card of microsoft/maira-2 documents the calls; they are methods of its processor, which is
remote code (processing_maira2.py). The processor writes the prompts, so that the question of a
request is not used. The weights (27.5 GB in float32) are under the Microsoft Research License, for
research only, and gated: accept the terms on the model page and run ``huggingface-cli login``.
Several public projects pin the default revision; the Hub itself could not be asked.

The first image is taken as the current frontal one; others are not used, for a request does not say
what they show. Region and finding names are located as phrases. The processor crops images to the
middle square: what lies outside is not seen. Not run here, for lack of the weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol import run

MODEL = "microsoft/maira-2"
REVISION = "795a2b1cd4a310624b4e3d14b5a23e41fd273deb"
TASKS = ["report_generation", "region_grounding", "abnormality_grounding", "phrase_grounding"]
UNKNOWN = dict.fromkeys(
    ["current_lateral", "prior_frontal", "prior_report", "indication", "technique", "comparison"]
)


def parse_args() -> argparse.Namespace:
    """Return the settings; stop if remote code is needed but not allowed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=MODEL, help="repository on the Hub, or folder")
    parser.add_argument("--revision", help="commit or tag; default: pinned, or main for others")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--max-new-tokens", type=int, default=450)
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's code")
    args = parser.parse_args()
    args.revision = args.revision or (REVISION if args.model == MODEL else "main")
    if not args.trust_remote_code:
        sys.exit(
            f"MAIRA-2 runs Python code from {args.model} at {args.revision}: read it, then allow "
            "it with --trust-remote-code."
        )
    return args


class Model:
    """The model and its processor."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoProcessor

        self.args = args
        self.dtype = getattr(torch, args.dtype)
        options = {"revision": args.revision, "trust_remote_code": True}
        self.processor = AutoProcessor.from_pretrained(args.model, **options)
        options["torch_dtype"] = self.dtype
        self.model = AutoModelForCausalLM.from_pretrained(args.model, **options)
        self.model.to(args.device).eval()

    def answer(self, request: dict) -> dict:
        """Write the findings, or locate the phrase."""
        from PIL import Image

        if not request["images"]:
            return {"text": "", "boxes": []}  # the calls need an image
        image = Image.open(request["images"][0]).convert("RGB")
        limit = request.get("max_new_tokens") or self.args.max_new_tokens
        if request["task"] != "report_generation":
            return self.locate(image, request["phrase"], limit)
        inputs = self.processor.format_and_preprocess_reporting_input(
            current_frontal=image, **UNKNOWN, get_grounding=False, return_tensors="pt"
        )
        return {"text": self.generate(inputs, limit)}

    def locate(self, image: Any, phrase: str, limit: int) -> dict:
        """Return the phrase that the model repeats and its boxes; output out of form has none."""
        inputs = self.processor.format_and_preprocess_phrase_grounding_input(
            frontal_image=image, phrase=phrase, return_tensors="pt"
        )
        text = self.generate(inputs, limit)
        try:
            found = self.processor.convert_output_to_plaintext_or_grounded_sequence(text)
        except (AssertionError, ValueError):
            return {"text": text, "boxes": []}
        if isinstance(found, str):
            return {"text": found, "boxes": []}
        boxes = [
            self.processor.adjust_box_for_original_image_size(box, *image.size)
            for _, phrase_boxes in found
            for box in phrase_boxes or []
        ]
        return {"text": " ".join(words for words, _ in found), "boxes": [list(b) for b in boxes]}

    def generate(self, inputs: Any, limit: int) -> str:
        """Return the new text."""
        import torch

        inputs = inputs.to(self.args.device, self.dtype)
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        new = output[0][inputs["input_ids"].shape[-1] :]
        return self.processor.decode(new, skip_special_tokens=True).strip()


def main() -> None:
    """Load the model and serve."""
    run(Model, parse_args(), TASKS)


if __name__ == "__main__":
    main()
