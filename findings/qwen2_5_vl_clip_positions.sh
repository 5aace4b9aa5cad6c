#!/usr/bin/env bash
# The position ids that Qwen2.5-VL gives one and the same clip depend on the version of
# transformers, and in transformers 5 the text after a clip starts within the clip's time span.
#
# The documented rule: the temporal positions of a clip advance by tokens_per_second × the seconds
# of a grid step (docstring of get_rope_index in all three versions), and the text after the clip
# starts at the clip's largest position + 1 (docstring in 4.57.6 only). Take tokens_per_second 2,
# three tokens before the clip, and 8 frames in 4 grid steps of 2 × 2 tokens. At 4 frames/s (steps
# of 0.5 s), the clip should lie at 3, 4, 5, 6 and the text start at 7; at 1 frame/s (steps of 2 s),
# the clip should lie at 3, 7, 11, 15 and the text start at 16.
#
# Observed with torch 2.15.0, without an error or a warning about it:
#   transformers     steps of 0.5 s              steps of 2 s
#   4.57.6           3 3 3 3, text from 5        3 7 11 15, text from 16
#   5.6.0            3 3 3 3, text from 5        3 7 11 15, text from 5
#   5.23.0           3 4 5 6, text from 5        3 7 11 15, text from 5
# 4.57.6 and 5.6.0 cut the seconds to a whole number, so that above 2 frames/s all frames share one
# time; pull request 48669 of transformers mended this. 5.x counts the text from the start of the
# clip + max(height, width) of the grid, whatever the duration, so text and frames share positions.
# None of the three follows the whole rule for both clips: a model trained with one of them sees
# other positions in another.
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'torch==2.15.0'
for version in 4.57.6 5.6.0 5.23.0; do
    "$folder/env/bin/pip" install --quiet --target "$folder/$version" "transformers==$version"
done
cat >"$folder/positions.py" <<'PY'
import inspect
import sys

import torch
import transformers
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

OBSERVED = {  # temporal positions of the grid steps and the first position of the text after them
    "4.57.6": {0.5: ([3, 3, 3, 3], 5), 2.0: ([3, 7, 11, 15], 16)},
    "5.6.0": {0.5: ([3, 3, 3, 3], 5), 2.0: ([3, 7, 11, 15], 5)},
    "5.23.0": {0.5: ([3, 4, 5, 6], 5), 2.0: ([3, 7, 11, 15], 5)},
}
TEXT, START, END, VIDEO = 5, 12, 13, 11
config = Qwen2_5_VLConfig(
    text_config={
        "vocab_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_scaling": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    },
    vision_config={
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
        "out_hidden_size": 32, "spatial_merge_size": 2, "tokens_per_second": 2,
    },
    image_token_id=10, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
)
model = Qwen2_5_VLModel(config)
STEPS, SIDE = 4, 4  # a grid of 4 × 4 × 4 patches is 4 × 2 × 2 tokens
ids = torch.tensor([[TEXT, TEXT, START, *[VIDEO] * 16, END, TEXT, TEXT]])


def positions(seconds):
    """Temporal position of each grid step and the first position of the text after the clip."""
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "video_grid_thw": torch.tensor([[STEPS, SIDE, SIDE]]),
        "second_per_grid_ts": torch.tensor([seconds]),
    }
    if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
        inputs["mm_token_type_ids"] = (ids == VIDEO).int() * 2
    temporal = model.get_rope_index(**inputs)[0][0, 0].tolist()
    return temporal[3:19:4], temporal[19]


found = {seconds: positions(seconds) for seconds in (0.5, 2.0)}
for seconds, (clip, text) in found.items():
    print(f"transformers {transformers.__version__}, {seconds} s: {clip}, text from {text}")
sys.exit(0 if found == OBSERVED[transformers.__version__] else 1)
PY
changed=0
for version in 4.57.6 5.6.0 5.23.0; do
    PYTHONPATH="$folder/$version" "$folder/env/bin/python" "$folder/positions.py" || changed=1
done
exit "$changed"
