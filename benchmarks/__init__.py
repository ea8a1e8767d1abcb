"""Figures that anyone can measure again. Timings belong here, never in a test."""
