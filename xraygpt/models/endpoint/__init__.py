"""Models behind an OpenAI-compatible address: vLLM, Ollama, llama.cpp, a vendor's service."""
