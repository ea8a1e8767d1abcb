"""Fuzzing: any input leads to one of our errors within a time limit, and memory does not grow.

The tests here are the short campaign, with fixed cases. ``python -m tests.fuzz --cases 100000`` is the long one.
"""
