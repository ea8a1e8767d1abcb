"""Endpoints in the shape of other servers: OpenAI's images API and vLLM's adapter API."""
