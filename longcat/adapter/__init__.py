"""LoRA adapters: the versioned artifact, its weights, and other programs' formats."""
