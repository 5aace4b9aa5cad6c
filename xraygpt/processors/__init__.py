"""Processors of images and report texts. Importing this package does not import torch."""
