"""Processes: ending with a parent, recognising one again, and free ports."""
