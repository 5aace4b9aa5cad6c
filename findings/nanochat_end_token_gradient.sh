#!/usr/bin/env bash
# A NanoChat of transformers with default settings never trains the embedding of its end token.
#
# NanoChatConfig names one token, 1, as the end of a text and as padding, and the embedding layer gives
# no gradient to its padding row. In a conversation, the model reads this token at the end of each
# turn. Its embedding is expected to be trained like any other, as in nanochat, which has no padding
# row, and as in transformers' Llama, whose defaults name no padding token.
#
# Observed with transformers 5.23.0, torch 2.15.0 (CPU), the largest gradient of the row of token 1
# after a text that contains it twice:
#   llama:     about 4e-1
#   nanochat:  exactly 0
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
from transformers import LlamaConfig, LlamaForCausalLM, NanoChatConfig, NanoChatForCausalLM

torch.manual_seed(0)
size = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
ids = torch.tensor([[0, 7, 8, 1, 9, 10, 1]])  # two turns, each ended by token 1
print("transformers", transformers.__version__, "torch", torch.__version__)
found = {}
for name, model in (
    ("llama", LlamaForCausalLM(LlamaConfig(**size, bos_token_id=0, eos_token_id=1))),
    ("nanochat", NanoChatForCausalLM(NanoChatConfig(**size))),
):
    config = model.config
    model(input_ids=ids, labels=ids).loss.backward()
    gradient = float(model.get_input_embeddings().weight.grad[1].abs().max())
    found[name] = gradient
    print(f"{name}: eos {config.eos_token_id}, pad {config.pad_token_id}, "
          f"largest gradient of the embedding of token 1: {gradient:.1e}")
sys.exit(0 if found["llama"] > 0 and found["nanochat"] == 0 else 1)
PY
"$folder/env/bin/python" "$folder/run.py"
