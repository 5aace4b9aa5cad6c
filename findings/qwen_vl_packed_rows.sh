#!/usr/bin/env bash
# Texts packed into one row see each other in Qwen2.5-VL, unless position ids have four axes.
#
# transformers separates the texts of a packed row by position ids that restart at 0: without an
# attention mask it builds a block-diagonal one. This is expected to work for every decoder: with
# restarting positions, a Llama and a Qwen2.5-VL should both give the logits of each text alone.
#
# Observed with transformers 5.23.0, torch 2.15.0 (CPU), as the largest difference of logits between
# a packed row and its two texts alone:
#   llama, (1, T):          about 1e-7  (separate)
#   qwen2.5-vl, (1, T):     about 1e-1  (the second text reads the first; no warning)
#   qwen2.5-vl, (3, 1, T):  about 1e-1  (the documented shape; same result)
#   qwen2.5-vl, (4, 1, T):  about 1e-7  (separate: a first axis of plain text positions is needed)
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'torch==2.15.0' 'transformers==5.23.0'
cat >"$folder/packed.py" <<'PY'
import sys

import torch
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

torch.manual_seed(0)
small = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}
rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
vision = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
}
llama = LlamaForCausalLM(LlamaConfig(**small)).eval()
qwen = Qwen2_5_VLForConditionalGeneration(
    Qwen2_5_VLConfig(text_config={**small, "rope_parameters": rope}, vision_config=vision)
).eval()
first, second = torch.randint(5, 60, (1, 7)), torch.randint(5, 60, (1, 9))
row = torch.cat([first, second], dim=1)
positions = torch.cat([torch.arange(7), torch.arange(9)])[None]


@torch.no_grad()
def gap(model, position_ids):
    """Largest difference of logits between the packed row and each text alone."""
    alone = torch.cat([model(input_ids=ids).logits for ids in (first, second)], dim=1)
    packed = model(input_ids=row, position_ids=position_ids, use_cache=False).logits
    return float((packed - alone).abs().max())


gaps = {
    "llama, (1, T)": gap(llama, positions),
    "qwen2.5-vl, (1, T)": gap(qwen, positions),
    "qwen2.5-vl, (3, 1, T)": gap(qwen, positions[None].expand(3, -1, -1)),
    "qwen2.5-vl, (4, 1, T)": gap(qwen, positions[None].expand(4, -1, -1)),
}
print("transformers", transformers.__version__, "torch", torch.__version__)
for name, value in gaps.items():
    print(f"{name}: {value:.1e}")
separate = [value < 1e-5 for value in gaps.values()]
sys.exit(0 if separate == [True, False, False, True] else 1)
PY
"$folder/env/bin/python" "$folder/packed.py"
