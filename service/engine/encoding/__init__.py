"""Encoding of what a request gives: its prompts, and its picture."""
