"""Benchmarks of the studio's pages."""
