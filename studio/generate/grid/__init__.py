"""Grids: prompts and seeds by adapters and scales, drawn as one job in one view."""
