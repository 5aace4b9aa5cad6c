"""Language models: loading, adapters, the loss on answers, decoding."""
