"""The model: its files, its sizes, loading and precision."""
