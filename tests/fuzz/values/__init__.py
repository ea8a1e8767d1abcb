"""Strange values, files and requests."""
