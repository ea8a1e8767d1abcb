"""Quantized weights: how they are made, and their snapshots on disk."""
