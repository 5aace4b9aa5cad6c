#!/usr/bin/env bash
# transformers 5.23.0 saves the vision weights of a LLaVA-OneVision model under other names if the
# model was built from a config than if it was loaded. 4.57.6 opens the former with random vision
# weights.
#
# Published checkpoints name these weights vision_tower.vision_model. and so on. save_pretrained is
# expected to write one layout for one class. A comment in core_model_loading.py
# (revert_weight_conversion) says that the prefix is left out on purpose for a model that was not
# loaded, since nothing tells whether it was there.
#
# Observed with torch 2.15.0 and a tiny model of 37 vision weights:
#   built and saved by 4.57.6:                      37 names with vision_model.
#   that, loaded and saved by 5.23.0:               37 names with vision_model.
#   built and saved by 5.23.0:                      37 names without vision_model.
#   that, loaded by 5.23.0:                         all weights found
#   that, loaded by 4.57.6:                         37 vision weights missing and random
# 4.57.6 names the missing weights in a logged warning, without an error.
#
# Exits with 0 while this is the case, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'torch==2.15.0'
for version in 4.57.6 5.23.0; do
    "$folder/env/bin/pip" install --quiet --target "$folder/$version" "transformers==$version"
done
cat >"$folder/names.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

transformers.logging.set_verbosity_error()
action, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])


def built():
    """A tiny model from a config."""
    torch.manual_seed(0)
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config={
                "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
                "patch_size": 7, "vision_use_head": False,
            },
            text_config={
                "model_type": "qwen2", "vocab_size": 64, "hidden_size": 32,
                "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 2,
            },
            image_token_index=60, video_token_index=61, vision_feature_layer=-1,
        )
    )


missing = []
if action == "build":
    model = built()
else:
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        source, output_loading_info=True
    )
    missing = [name for name in info["missing_keys"] if "vision_tower" in name]
model.save_pretrained(target)
with safe_open(target / "model.safetensors", "pt") as file:
    names = [name for name in file.keys() if "vision_tower" in name]
    values = file.get_tensor(next(n for n in names if n.endswith("patch_embedding.weight")))
inner = sum("vision_model." in name for name in names)
result = {
    "with": inner, "without": len(names) - inner, "missing": len(missing),
    "sum": round(float(values.double().abs().sum()), 6),
}
(target / "result.json").write_text(json.dumps(result))
print(f"transformers {transformers.__version__}, {action} {source.name}:", result, sorted(names)[0])
PY
run() {
    HF_HUB_OFFLINE=1 PYTHONPATH="$folder/$1" \
        "$folder/env/bin/python" "$folder/names.py" "$2" "$folder/$3" "$folder/$4"
}
run 4.57.6 build - old_built
run 5.23.0 load old_built new_loaded
run 5.23.0 build - new_built
run 5.23.0 load new_built new_built_loaded
run 4.57.6 load new_loaded old_from_loaded
run 4.57.6 load new_built old_from_built
cat >"$folder/compare.py" <<'PY'
import json
import sys
from pathlib import Path

ALL = 37  # vision weights of the tiny model
found = {path.parent.name: json.loads(path.read_text()) for path in Path().glob("*/result.json")}
layouts = {name: (r["with"], r["without"], r["missing"]) for name, r in found.items()}
same = layouts == {
    "old_built": (ALL, 0, 0),
    "new_loaded": (ALL, 0, 0),
    "new_built": (0, ALL, 0),
    "new_built_loaded": (0, ALL, 0),
    "old_from_loaded": (ALL, 0, 0),
    "old_from_built": (ALL, 0, ALL),
}
kept = {name: r["sum"] for name, r in found.items()}
same = same and kept["old_built"] == kept["new_loaded"] == kept["old_from_loaded"]
same = same and kept["new_built"] == kept["new_built_loaded"] != kept["old_from_built"]
sys.exit(0 if same else 1)
PY
cd "$folder"
env/bin/python compare.py
