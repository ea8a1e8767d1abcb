"""The record of a run: progress, metrics, run file, boards, bar."""
