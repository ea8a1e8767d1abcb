"""A typed client of a running service, blocking or asynchronous. No torch."""
