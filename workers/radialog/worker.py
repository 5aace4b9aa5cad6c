"""Answer requests with RaDialog 2, a LLaVA 1.5 7B tuned for dialogues about chest X-rays.

The model card of ChantalPellegrini/RaDialog-interactive-radiology-report-generation and
github.com/ChantalMP/RaDialog_v2 document the calls. The repository on the Hub holds Python code and
pickled LoRA weights (0.8 GB, marked Apache-2.0, not gated) over liuhaotian/llava-v1.5-7b (13.5 GB,
Llama 2 licence). Its code also downloads BioViL-T. The default revisions are commits that were seen
on the model page and in several public projects.

As documented, a report is asked for together with the findings of the repository's own classifier;
other questions only with the image. The first image is used. Not run here, for lack of the weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol import run

MODEL = "ChantalPellegrini/RaDialog-interactive-radiology-report-generation"
REVISION = "14b6bf53a4105c7080f6f4ec6ff2f3b806a580a3"
BASE, BASE_REVISION = "liuhaotian/llava-v1.5-7b", "4481d270cc22fd5c4d1bb5df129622006ccd9234"
TASKS = ["report_generation", "abnormality_classification", "conversation"]


def parse_args() -> argparse.Namespace:
    """Return the settings; stop if remote code is needed but not allowed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=MODEL, help="repository on the Hub")
    parser.add_argument("--revision", help="commit or tag; default: pinned, or main for others")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--max-new-tokens", type=int, default=300)
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's code")
    args = parser.parse_args()
    args.revision = args.revision or (REVISION if args.model == MODEL else "main")
    if not args.trust_remote_code:
        sys.exit(
            f"RaDialog runs Python code and loads pickles from {args.model} at {args.revision}: "
            "read them, then allow it with --trust-remote-code."
        )
    return args


class Model:
    """The language model, its tokenizer and the classifier of findings."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from huggingface_hub import snapshot_download

        folder = snapshot_download(args.model, revision=args.revision)
        base = snapshot_download(BASE, revision=BASE_REVISION)
        sys.path.insert(0, folder)
        import utils
        from LLAVA_Biovil.llava.model.builder import load_pretrained_model

        self.args = args
        self.dtype = getattr(torch, args.dtype)
        self.tokenizer, self.model, _, _ = load_pretrained_model(
            Path(folder), base, "llava-lora", device_map={"": args.device}, device=args.device
        )  # the name tells the loader what this is
        self.model.to(args.device, self.dtype).eval()
        self.model.config.tokenizer_padding_side = "left"
        self.transform = utils.create_chest_xray_transform_for_inference(512, center_crop_size=448)
        self.classifier, self.findings, self.finding_transform = utils.init_chexpert_predictor()
        self.classifier.to(args.device, torch.float32).eval()

    def answer(self, request: dict) -> dict:
        """Return the text that follows the dialogue."""
        import numpy as np
        import torch
        from LLAVA_Biovil.llava.constants import IMAGE_TOKEN_INDEX
        from LLAVA_Biovil.llava.mm_utils import remap_to_uint8, tokenizer_image_token
        from PIL import Image

        if not request["images"]:
            return {"text": ""}  # the calls need an image
        pixels = np.array(Image.open(request["images"][0]).convert("L"))
        image = Image.fromarray(remap_to_uint8(pixels))
        prompt = self.prompt_of(request, image)
        tokens = tokenizer_image_token(
            prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
        ).unsqueeze(0)
        with torch.inference_mode():
            output = self.model.generate(
                tokens.to(self.args.device),
                images=self.transform(image)[None].to(self.args.device, self.dtype),
                do_sample=False,
                max_new_tokens=request.get("max_new_tokens") or self.args.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        new = output[0, tokens.shape[1] :]
        return {"text": self.tokenizer.decode(new, skip_special_tokens=True).strip()}

    def prompt_of(self, request: dict, image: Any) -> str:
        """Return the dialogue in the model's form, with the findings of the classifier."""
        import torch
        from LLAVA_Biovil.llava.conversation import conv_vicuna_v1

        dialogue = conv_vicuna_v1.copy()
        start = "<image>. "
        if request["task"] == "report_generation":
            with torch.inference_mode():
                pixels = self.finding_transform(image)[None].to(self.args.device)
                present = (self.classifier(pixels)[0] > 0).cpu().numpy()
            start += f"Predicted Findings: {', '.join(self.findings[present]).lower()}. "
        for turn in request["turns"]:
            role = dialogue.roles[0 if turn["role"] == "user" else 1]
            dialogue.append_message(role, start + turn["text"])
            start = ""
        dialogue.append_message(dialogue.roles[1], None)
        return dialogue.get_prompt()


def main() -> None:
    """Load the model and serve."""
    run(Model, parse_args(), TASKS)


if __name__ == "__main__":
    main()
