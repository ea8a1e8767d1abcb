"""Captions made by a vision-language model, for pictures that have none."""
