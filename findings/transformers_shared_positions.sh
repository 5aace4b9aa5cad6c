#!/usr/bin/env bash
# Tokens that share a position cannot be seen by later text, unless an attention mask of ones is passed.
#
# Tokens of a picture often share a position, as in M-RoPE or in decoders that read a set. With causal
# attention, position ids are expected to change the rotation only: each token sees all before it.
#
# transformers takes neighbouring positions that do not grow by one for the start of another text in a
# packed row, if no attention mask is passed. Then every shared position is a text of its own.
#
# Observed with transformers 5.23.0, torch 2.15.0 (CPU): the largest change of the last token's logits
# when the first token changes:
#   positions 0 to 7, no mask:       about 1e-1
#   shared positions, mask of ones:  about 1e-1
#   shared positions, no mask:       exactly 0 (the last token does not see the first; no warning)
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'torch==2.15.0' 'transformers==5.23.0'
cat >"$folder/run.py" <<'PY'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
llama = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )
).eval()
ids = torch.randint(5, 60, (1, 8))
other = ids.clone()
other[0, 0] = (other[0, 0] + 7) % 60
shared = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5]])  # three tokens of a picture, then text


@torch.no_grad()
def influence(position_ids, mask):
    """How much the first token changes the logits of the last."""
    rows = [
        llama(input_ids=x, position_ids=position_ids, attention_mask=mask, use_cache=False).logits
        for x in (ids, other)
    ]
    return float((rows[0][0, -1] - rows[1][0, -1]).abs().max())


ones = torch.ones_like(ids)
found = {
    "positions 0 to 7, no mask": influence(torch.arange(8)[None], None),
    "shared positions, mask of ones": influence(shared, ones),
    "shared positions, no mask": influence(shared, None),
}
print("transformers", transformers.__version__, "torch", torch.__version__)
for name, value in found.items():
    print(f"{name}: {value:.1e}")
sys.exit(0 if [v > 1e-4 for v in found.values()] == [True, True, False] else 1)
PY
"$folder/env/bin/python" "$folder/run.py"
