"""Segmentation of images into structures: the contract of segmenters, and the included ones."""
