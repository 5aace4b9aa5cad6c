"""Rendering of conversation turns as token ids."""
