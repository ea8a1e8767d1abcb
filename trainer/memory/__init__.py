"""The memory plan: the memory that a training takes, and the settings that fit a device."""
