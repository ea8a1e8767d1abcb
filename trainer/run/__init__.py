"""One training from its configuration to a published adapter."""
