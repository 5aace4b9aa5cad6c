"""Chat about images: conversations, attention maps and an OpenAI-compatible endpoint."""

from xraygpt.conversation.answer import Answer
from xraygpt.conversation.chat import Busy, ChatEngine, Conversation

__all__ = ["Answer", "Busy", "ChatEngine", "Conversation"]
