"""Chat without a browser: conversations about images, each turn costing only its own tokens."""

from xraygpt.conversation.answer import Answer
from xraygpt.conversation.chat import Busy, ChatEngine, Conversation

__all__ = ["Answer", "Busy", "ChatEngine", "Conversation"]
