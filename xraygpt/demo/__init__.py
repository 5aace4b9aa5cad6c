"""Web page to show an X-ray, draft its report, ask questions and see where the model looked."""
