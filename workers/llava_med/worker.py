"""Answer requests with LLaVA-Med 1.5, a Mistral 7B with a CLIP encoder for biomedical images.

github.com/microsoft/LLaVA-Med documents the calls (llava/eval/model_vqa.py, with the conversation
form mistral_instruct); its package llava is installed by requirements.txt at a fixed commit. The
weights of microsoft/llava-med-v1.5-mistral-7b (15.1 GB) are marked Apache-2.0, while the repository
allows research use only; they are not gated. The default revision was seen on the model page. The
package also loads openai/clip-vit-large-patch14-336 (1.7 GB), without a revision. Its own loader
is not used, for it fails on devices other than "cuda". Not run here, for lack of the weights.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol import run

MODEL = "microsoft/llava-med-v1.5-mistral-7b"
REVISION = "f2f72301dc934e74948b5802c87dbc83d100e6bd"
TASKS = ["report_generation", "conversation"]


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


def prompt_of(request: dict) -> str:
    """Return the dialogue in the model's form, with the places of the images in the first turn."""
    from llava.constants import DEFAULT_IMAGE_TOKEN
    from llava.conversation import conv_templates

    dialogue = conv_templates["mistral_instruct"].copy()
    start = (DEFAULT_IMAGE_TOKEN + "\n") * len(request["images"])
    for turn in request["turns"]:
        role = dialogue.roles[0 if turn["role"] == "user" else 1]
        dialogue.append_message(role, start + turn["text"])
        start = ""
    dialogue.append_message(dialogue.roles[1], None)
    return dialogue.get_prompt()


class Model:
    """The model, its tokenizer and its image processor."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from llava.model import LlavaMistralForCausalLM
        from transformers import AutoTokenizer

        self.args = args
        self.dtype = getattr(torch, args.dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(args.model, revision=args.revision)
        self.model = LlavaMistralForCausalLM.from_pretrained(
            args.model, revision=args.revision, torch_dtype=self.dtype
        )
        encoder = self.model.get_vision_tower()
        if not encoder.is_loaded:
            encoder.load_model()
        self.image_processor = encoder.image_processor
        self.model.to(args.device, self.dtype).eval()

    def answer(self, request: dict) -> dict:
        """Return the text that follows the dialogue."""
        import torch
        from llava.constants import IMAGE_TOKEN_INDEX
        from llava.mm_utils import tokenizer_image_token

        tokens = tokenizer_image_token(
            prompt_of(request), self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
        ).unsqueeze(0)
        with torch.inference_mode():
            output = self.model.generate(
                tokens.to(self.args.device),
                images=self.pixels(request["images"]),
                do_sample=False,
                max_new_tokens=request.get("max_new_tokens") or self.args.max_new_tokens,
                pad_token_id=self.tokenizer.eos_token_id,
            )
        # The package generates from embeddings, so that the output has no prompt.
        return {"text": self.tokenizer.decode(output[0], skip_special_tokens=True).strip()}

    def pixels(self, paths: list) -> Any:
        """Return the images as one tensor of shape (images, 3, height, width), or None."""
        from llava.mm_utils import process_images
        from PIL import Image

        if not paths:
            return None
        images = [Image.open(path).convert("RGB") for path in paths]
        random.seed(0)  # the package pads images to a square by a random pixel more or less
        batch = process_images(images, self.image_processor, self.model.config)
        return batch.to(self.args.device, self.dtype)


def main() -> None:
    """Load the model and serve."""
    run(Model, parse_args(), TASKS)


if __name__ == "__main__":
    main()
