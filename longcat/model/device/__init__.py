"""The device: what this machine has, and how a GPU fails."""
