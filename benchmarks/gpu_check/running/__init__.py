"""Running groups of checks as processes, and the report."""
