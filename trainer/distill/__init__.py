"""Distillation: the base with guidance becomes an adapter that needs few steps and none."""
