"""Runners: the training loop and the evaluation beside it."""

from xraygpt.runners import train_loop

__all__ = ["train_loop"]
