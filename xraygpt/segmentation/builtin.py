"""Imports all included segmenters, so that they register."""

from xraygpt.segmentation import masks, nnunet, onnx_network, torch_network

__all__ = ["masks", "nnunet", "onnx_network", "torch_network"]
