"""Prompts to embeddings, and files that keep what was encoded."""
