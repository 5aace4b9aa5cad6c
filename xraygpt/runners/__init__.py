"""Runners: the training loop and the validation during training."""

from xraygpt.runners import llama_factory, train_loop

__all__ = ["llama_factory", "train_loop"]
