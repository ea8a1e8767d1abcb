"""Metrics, traces and the record of what happened to each request."""
