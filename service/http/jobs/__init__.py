"""Requests that are answered later, and the webhooks that announce it."""
