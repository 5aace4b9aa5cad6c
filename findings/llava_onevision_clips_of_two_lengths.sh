#!/usr/bin/env bash
# LlavaOnevisionProcessor cannot make a batch of two samples whose clips have different numbers of
# frames. The error advises padding=True, which is set.
#
# Each prompt gets video tokens for its own number of frames, and padding=True pads the ids and the
# attention mask to one length. Images of different sizes can be batched as well, since their tiles
# are padded. Clips of 2 and of 3 frames are expected to be padded in the same way.
#
# Observed with transformers 5.23.0, torch 2.15.0, torchvision 0.29.2, padding=True:
#   clips of 2 and 2 frames, return_tensors="pt":  works
#   images of two sizes, return_tensors="pt":      works
#   clips of 2 and 3 frames, return_tensors=None:  works, both rows of ids have one length
#   clips of 2 and 3 frames, return_tensors="pt":  ValueError: Unable to convert output
#       'pixel_values_videos' (type: list) to tensor … You can try: 1. Use padding=True …
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'torch==2.15.0' 'torchvision==0.29.2' 'transformers==5.23.0'
cat >"$folder/clips.py" <<'PY'
import sys

import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

SIDE, PATCH = 28, 7
size = {"height": SIDE, "width": SIDE}
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
processor = transformers.LlavaOnevisionProcessor(
    image_processor=transformers.LlavaOnevisionImageProcessor(
        image_grid_pinpoints=[[28, 28], [28, 56], [56, 28], [56, 56]], size=size
    ),
    tokenizer=transformers.Qwen2Tokenizer(
        vocab={c: i for i, c in enumerate(alphabet)}, merges=[], unk_token="<|endoftext|>",
        pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
    ),
    video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
    num_image_tokens=(SIDE // PATCH) ** 2,
    vision_feature_select_strategy="full",
)


def clip(frames):
    return np.zeros((frames, SIDE, SIDE, 3), np.uint8)


def batch(mark, tensors="pt", **media):
    """The processor's output for two samples, or its error."""
    texts = [f"<|im_start|>user\n{mark}Is it normal?<|im_end|>"] * 2
    try:
        return processor(text=texts, padding=True, return_tensors=tensors, **media)
    except ValueError as error:
        return str(error)


def works(output):
    return not isinstance(output, str)


equal = batch("<video>", videos=[clip(2), clip(2)])
images = batch("<image>", images=[[clip(1)[0]], [np.zeros((56, 56, 3), np.uint8)]])
lists = batch("<video>", tensors=None, videos=[clip(2), clip(3)])
lengths = [len(row) for row in lists["input_ids"]] if works(lists) else []
unequal = batch("<video>", videos=[clip(2), clip(3)])
print("transformers", transformers.__version__, "torch", torch.__version__)
print("clips of 2 and 2 frames:", works(equal), "images of two sizes:", works(images))
print("clips of 2 and 3 frames without tensors, lengths of the ids:", lengths)
print("clips of 2 and 3 frames:", unequal)
same = works(equal) and works(images) and len(lengths) == 2 and lengths[0] == lengths[1]
same = same and not works(unequal) and "'pixel_values_videos'" in unequal
sys.exit(0 if same and "Use padding=True" in unequal else 1)
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/clips.py"
