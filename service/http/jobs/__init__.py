"""Asynchronous jobs, and the webhooks that announce their end."""
