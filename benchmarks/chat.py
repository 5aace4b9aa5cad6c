"""Time to the first token of a chat's second question, with the cache of the first and without.

    python benchmarks/chat.py [--rounds 7]

`mini` with random Q-Former weights and a random picture; the first answer has 60 tokens. The other
side reads the whole conversation again, image included, as a demo that keeps no cache does. Both
ask the same second question in turn, in one process; their greedy answers are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from xraygpt.common.config import load
from xraygpt.conversation.chat import ChatEngine, Conversation
from xraygpt.experiment import Training, build_model
from xraygpt.models.base import Generation

ROOT = Path(__file__).resolve().parents[1]
SECOND = "Is there a pleural effusion?"


def first_token(chat: Conversation) -> tuple[float, str]:
    """Seconds, and the answer."""
    began = time.perf_counter()
    answer = chat.ask(SECOND, Generation(max_new_tokens=1))
    text = answer.text()
    return time.perf_counter() - began, text


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    experiment = load(Training, ROOT / "benchmarks" / "training.yaml", [])
    engine = ChatEngine(build_model(experiment, 0))
    spec = engine.model.image_spec
    chat = engine.start()
    picture = torch.randn(3, spec.image_size, spec.image_size, generator=torch.manual_seed(0))
    chat.add_image(picture)
    chat.ask("Describe this chest X-ray.", Generation(max_new_tokens=60)).text()
    kept, anew, differing = [], [], 0
    for number in range(given.rounds + 1):  # the first warms up
        with_cache, one = first_token(chat)
        chat.undo()
        chat.free_cache()
        without, other = first_token(chat)
        chat.undo()
        first_token(chat)  # the cache of the first exchange is there again
        chat.undo()
        differing += one != other
        if number:
            kept.append(with_cache)
            anew.append(without)
    times = [b / a for a, b in zip(kept, anew, strict=True)]
    low, _, high = statistics.quantiles(times, n=4)
    print(
        f"first token of turn two: {statistics.median(kept):.3f} s with the cache, "
        f"{statistics.median(anew):.3f} s anew: {statistics.median(times):.1f} times "
        f"({low:.1f} to {high:.1f}); {differing} answers differ"
    )
    if given.out:
        given.out.write_text(json.dumps({"kept": kept, "anew": anew}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
