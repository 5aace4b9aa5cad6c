"""Runners: the training loop and the validation during training."""

from xraygpt.runners import train_loop

__all__ = ["train_loop"]
