#!/usr/bin/env bash
# Qwen3VLProcessor of transformers 5.23.0 leaves a pair of vision marks around a clip that 4.57.6
# replaces, so that the same prompt and clip have other token ids.
#
# The chat template of Qwen3-VL writes a clip as <|vision_start|><|video_pad|><|vision_end|>. The
# processor turns this into one block for each pair of frames: a time, <|vision_start|>, the tokens
# of the frames, <|vision_end|>. Each block has marks of its own, so 4.57.6 replaces the template's
# three tokens together. The same ids are expected from 5.23.0, as the published weights and
# template are the same.
#
# Observed with torch 2.15.0, torchvision 0.29.2 (V: a video token; <s>, <e>: the marks):
#   transformers 4.57.6: <0.5 seconds><s>VVVV<e><2.5 seconds><s>VVVV<e>
#   transformers 5.23.0: <s><0.5 seconds><s>VVVV<e><2.5 seconds><s>VVVV<e><e>
# Nothing in the library says whether the outer pair is meant: no comment in the processor, which
# replaces <|video_pad|> alone by the code common to all models, and no test of the ids. The
# docstring of Qwen3VLModel.get_rope_index in 5.23.0 still shows a clip without the outer pair. vLLM
# has the same observation for 5.12.0 (its issue 46817) and now writes the form of the transformers
# version that is installed.
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'torch==2.15.0' 'torchvision==0.29.2'
for version in 4.57.6 5.23.0; do
    "$folder/env/bin/pip" install --quiet --target "$folder/$version" "transformers==$version"
done
cat >"$folder/marks.py" <<'PY'
import json
import sys
from pathlib import Path

import numpy as np
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.video_utils import VideoMetadata

OBSERVED = {
    "4.57.6": "<0.5 seconds><s>VVVV<e><2.5 seconds><s>VVVV<e>",
    "5.23.0": "<s><0.5 seconds><s>VVVV<e><2.5 seconds><s>VVVV<e><e>",
}
SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]


def tokenizer(folder):
    """A tokenizer of bytes with the special tokens of Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    core.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": SPECIALS[0], "pad_token": SPECIALS[0],
        "eos_token": SPECIALS[2], "additional_special_tokens": SPECIALS[1:],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    name = "Qwen2TokenizerFast" if transformers.__version__.startswith("4.") else "Qwen2Tokenizer"
    return getattr(transformers, name).from_pretrained(folder)


processor = transformers.Qwen3VLProcessor(
    image_processor=transformers.Qwen2VLImageProcessor(patch_size=16),
    tokenizer=tokenizer(Path(sys.argv[1])),
    video_processor=transformers.Qwen3VLVideoProcessor(
        size={"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 64 * 64}
    ),
)
clip = np.zeros((4, 64, 64, 3), np.uint8)  # 4 frames at 1 frame/s
inputs = processor(
    text=["<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Is it normal?<|im_end|>"],
    videos=[clip],
    videos_kwargs={
        "do_sample_frames": False,
        "video_metadata": [VideoMetadata(total_num_frames=4, fps=1.0, frames_indices=[0, 1, 2, 3])],
    },
)
ids = inputs["input_ids"][0]
text = processor.tokenizer.decode(ids)
clip_text = text.split("user\n")[1].split("Is it")[0]
for token, short in (("vision_start", "<s>"), ("vision_end", "<e>"), ("video_pad", "V")):
    clip_text = clip_text.replace(f"<|{token}|>", short)
print("transformers", transformers.__version__, f"({len(ids)} ids):", clip_text)
sys.exit(0 if clip_text == OBSERVED[transformers.__version__] else 1)
PY
changed=0
for version in 4.57.6 5.23.0; do
    mkdir "$folder/tokenizer-$version"
    HF_HUB_OFFLINE=1 PYTHONPATH="$folder/$version" \
        "$folder/env/bin/python" "$folder/marks.py" "$folder/tokenizer-$version" || changed=1
done
exit "$changed"
