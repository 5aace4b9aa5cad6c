"""Answer requests with CheXagent-2 3B, which reads chest X-rays and locates findings.

The model card of StanfordAIMI/CheXagent-2-3b and github.com/Stanford-AIMI/CheXagent document the
calls; the tokenizer and the model are remote code. The weights (12.6 GB, and an image encoder from
StanfordAIMI/XraySigLIP__vit-l-16-siglip-384__webli, which the code loads without a revision) are
CC BY-NC 4.0 and not gated. Several public projects pin the default revision; the Hub itself could
not be asked.

Questions are sent as they are, the last one only, for the documented calls are single questions.
The model was trained on fixed prompts for each task, which its repository lists: for the best
results, give them as --report-prompt, --phrase-prompt and so on. The model's code opens the image
from a path in the prompt, which must be short (some hundred characters). Images are squeezed to a
square, so that boxes, 0 to 100 per axis, only need to be divided by 100. Not run here, for lack of
the weights.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol import last_question, run

MODEL = "StanfordAIMI/CheXagent-2-3b"
REVISION = "8f19b53a2eceda4c33b0acec6c81fbc293ad80d0"
# Task -> the option with the prompt that the model was trained on.
PROMPTS = {
    "report_generation": "report_prompt",
    "abnormality_classification": "classification_prompt",
    "region_grounding": "phrase_prompt",
    "phrase_grounding": "phrase_prompt",
    "abnormality_grounding": "abnormality_prompt",
}
TASKS = list(PROMPTS)
BOX = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*,\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")


def parse_args() -> argparse.Namespace:
    """Return the settings; stop if remote code is needed but not allowed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=MODEL, help="repository on the Hub, or folder")
    parser.add_argument("--revision", help="commit or tag; default: pinned, or main for others")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's code")
    for name in dict.fromkeys(PROMPTS.values()):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, help="prompt with {} for the phrase; default: the question")
    args = parser.parse_args()
    args.revision = args.revision or (REVISION if args.model == MODEL else "main")
    if not args.trust_remote_code:
        sys.exit(
            f"CheXagent-2 runs Python code from {args.model} at {args.revision}: read it, then "
            "allow it with --trust-remote-code."
        )
    return args


class Model:
    """The model and its tokenizer."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.args = args
        options = {"revision": args.revision, "trust_remote_code": True}
        self.tokenizer = AutoTokenizer.from_pretrained(args.model, **options)
        self.model = AutoModelForCausalLM.from_pretrained(args.model, **options)
        self.model.to(args.device, getattr(torch, args.dtype)).eval()

    def answer(self, request: dict) -> dict:
        """Answer the last question, or locate the phrase."""
        prompt = getattr(self.args, PROMPTS[request["task"]]) or last_question(request)
        text = self.generate(request, prompt.replace("{}", request.get("phrase", "")))
        if not request["task"].endswith("grounding"):
            return {"text": text}
        boxes = [[int(number) / 100 for number in box] for box in BOX.findall(text)]
        return {"text": text, "boxes": boxes}

    def generate(self, request: dict, prompt: str) -> str:
        """Return the new text, in which boxes are (x_min,y_min),(x_max,y_max)."""
        import torch

        images = [{"image": path} for path in request["images"]]
        query = self.tokenizer.from_list_format([*images, {"text": prompt}])
        dialogue = [
            {"from": "system", "value": "You are a helpful assistant."},
            {"from": "human", "value": query},
        ]
        inputs = self.tokenizer.apply_chat_template(
            dialogue, add_generation_prompt=True, return_tensors="pt"
        ).to(self.args.device)
        limit = request.get("max_new_tokens") or self.args.max_new_tokens
        with torch.inference_mode():
            output = self.model.generate(inputs, max_new_tokens=limit, do_sample=False)
        text = self.tokenizer.decode(output[0][inputs.shape[1] :])
        return text.split(self.tokenizer.eos_token)[0].strip()


def main() -> None:
    """Load the model and serve."""
    run(Model, parse_args(), TASKS)


if __name__ == "__main__":
    main()
