"""Data that cross HTTP and the process boundary: requests, events, messages, picture files. No torch."""
