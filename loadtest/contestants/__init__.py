"""The servers under comparison and their start."""
