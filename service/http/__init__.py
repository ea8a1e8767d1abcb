"""The HTTP process: one router for each surface, and what they share. No torch."""
