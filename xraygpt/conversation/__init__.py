"""Chat without a browser: conversations about images, each turn costing only its own tokens."""

from xraygpt.conversation.chat import Answer, Busy, ChatEngine, Conversation

__all__ = ["Answer", "Busy", "ChatEngine", "Conversation"]
