"""Time to the first token of a chat's second answer, with and without the cache of the first.

    python benchmarks/chat.py [--rounds 7]

The model is `mini` with random Q-Former weights, the picture is random, and the first answer has 60
tokens. Without the cache, the conversation is processed again from the start, including the image.
Both variants answer the same second question in turn, in one process; greedy answers are compared.
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
QUESTION = "Is there a pleural effusion?"


def first_token(chat: Conversation) -> tuple[float, str]:
    """Seconds to the first token of the answer, and the answer."""
    start = time.perf_counter()
    answer = chat.ask(QUESTION, Generation(max_new_tokens=1))
    text = answer.text()
    return time.perf_counter() - start, text


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    experiment = load(Training, ROOT / "benchmarks" / "training.yaml", [])
    engine = ChatEngine(build_model(experiment, 0))
    spec = engine.model.image_spec
    chat = engine.start()
    picture = torch.randn(3, spec.image_size, spec.image_size, generator=torch.manual_seed(0))
    chat.add_image(picture)
    chat.ask("Describe this chest X-ray.", Generation(max_new_tokens=60)).text()
    cached_seconds, uncached_seconds, differing = [], [], 0
    for number in range(args.rounds + 1):  # the first round warms up
        cached, answer = first_token(chat)
        chat.undo()
        chat.free_cache()
        uncached, uncached_answer = first_token(chat)
        chat.undo()
        first_token(chat)  # fills the cache again
        chat.undo()
        differing += answer != uncached_answer
        if number:
            cached_seconds.append(cached)
            uncached_seconds.append(uncached)
    ratios = [b / a for a, b in zip(cached_seconds, uncached_seconds, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"first token of the second answer: {statistics.median(cached_seconds):.3f} s with the "
        f"cache, {statistics.median(uncached_seconds):.3f} s without: "
        f"{statistics.median(ratios):.1f} times "
        f"({low:.1f} to {high:.1f}); {differing} answers differ"
    )
    if args.out:
        seconds = {"kept": cached_seconds, "anew": uncached_seconds}
        args.out.write_text(json.dumps(seconds, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
