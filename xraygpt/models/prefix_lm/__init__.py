"""Decoders that read the embeddings of a study as an order-free prefix."""
