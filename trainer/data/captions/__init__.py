"""Captions: read from the files beside pictures or from tables, decoded, and composed into a training's texts. No torch."""
