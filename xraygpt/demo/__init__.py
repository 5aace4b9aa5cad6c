"""The page in a browser: an X-ray, a draft of its report, questions, and where the model looked."""
