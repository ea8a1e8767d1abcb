"""Commands about API keys, and what they use."""
