"""Validation, in training and after it: prompts sampled with base and adapter."""
