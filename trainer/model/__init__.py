"""The transformer as training changes it: LoRA layers, forward, checkpointing, offload."""
