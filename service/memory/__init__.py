"""The memory of serving: its plan, and the choice of settings that fit a device. No torch."""
