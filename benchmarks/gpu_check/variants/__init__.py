"""Part 2: precisions, compilation, offloading, little memory, failures, and the server."""
