"""Pictures that requests change: their fields, and reading them. No torch."""
