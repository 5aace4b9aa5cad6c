"""Language models: loading, LoRA, the loss on answers, decoding."""
