"""Device memory: the sizes of a model's components, the memory that a device has, and the memory in use."""
