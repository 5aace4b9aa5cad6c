"""The web page: show an X-ray, draft its report, ask questions, see where the model looked."""
