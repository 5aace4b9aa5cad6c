"""Instruction sets: image collections with labels, reports and boxes become conversations."""
