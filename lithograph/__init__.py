"""The ``lithograph`` command: one entry to everything that a person runs."""
