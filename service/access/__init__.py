"""API keys: who sends a request, and which adapters and actions are allowed. No torch, no HTTP."""
