"""Adapters in the engine process: from a name in storage to verified weights in memory."""
