"""The trainer: trains an adapter on captioned pictures."""
