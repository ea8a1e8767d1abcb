"""Sampling: from prompt and noise to an image."""
