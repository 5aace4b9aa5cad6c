"""Vision-language models of transformers, with their own processors."""
