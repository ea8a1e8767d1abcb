"""Captioned pictures in, an adapter out."""
