"""The scan of a dataset: its files, their facts from earlier scans, and what excludes a picture. No torch."""
