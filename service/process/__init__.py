"""The processes of a server: how they start, drain, restart and end."""
