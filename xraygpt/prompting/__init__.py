"""Conversation turns to token ids."""
