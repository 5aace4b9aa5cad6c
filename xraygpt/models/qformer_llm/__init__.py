"""The Q-Former family: vision encoder, Q-Former, linear projection, LLM."""
