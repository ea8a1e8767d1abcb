"""Processes: ending with a parent, and recognising one again."""
