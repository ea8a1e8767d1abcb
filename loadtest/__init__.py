"""Load tests: a client that starts servers, loads them, and compares them. It imports nothing of the product."""
