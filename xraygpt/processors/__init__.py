"""Item -> tensor or text: images, report texts, prompts. Importing it loads no torch."""
