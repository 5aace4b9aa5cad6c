"""Run echovlm's own evaluation on texts, in a process of its own: rules, pairs -> scores as JSON.

Usage: python echovlm_reference.py CLONE INPUT, where INPUT has ``rules`` and ``pairs`` of generated
and reference reports. Prints the label of each text and the score of each trait.
"""

import importlib.util
import json
import math
import os
import sys
import tempfile
import warnings
from pathlib import Path


class Texts:
    """A tokenizer whose only tokens are indices of texts."""

    def __init__(self, texts):
        self.texts = texts

    def __call__(self, prompt, prepend=None):
        return [prepend]

    def decode(self, ids):
        return self.texts[ids[0]]


class Engine:
    """Generates the text whose index is the study embedding."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def generate_batch(self, tokens, study_embeddings, **_):
        return [[study_embeddings]], None


def main():
    clone, given = Path(sys.argv[1]).resolve(), json.loads(Path(sys.argv[2]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("assets").mkdir()
        Path("assets/per_section.json").write_text(json.dumps(given["rules"]))
        spec = importlib.util.spec_from_file_location("loss_eval", clone / "echovlm/loss_eval.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    texts = [text for pair in given["pairs"] for text in pair]
    studies = [
        {"study_embeddings": 2 * i, "study_uid": i, "input_ids": [2 * i + 1]}
        for i in range(len(given["pairs"]))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = module.evaluate_core(Engine(Texts(texts)), studies)
    result = {k: None if math.isnan(v) else float(v) for k, v in scores.items()}
    sys.stdout.write(
        json.dumps({"labels": [module.get_labels(t) for t in texts], "scores": result})
    )


if __name__ == "__main__":
    main()
