"""The updates of adapters that are not matrices in a slot: vectors, magnitudes, and layers before the steps."""
