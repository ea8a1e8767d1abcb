"""Fuzzing: whatever is sent or stored, the answer is an error of ours, in time, and memory does not grow.

The tests here are the short campaign: the same cases each time. ``python -m tests.fuzz --cases 100000`` is the long one.
"""
