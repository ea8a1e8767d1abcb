"""The record of a run: progress, outcome, metrics, run file, boards, bar."""
