"""The weights of an adapter: its layers in memory, and the file that holds them."""
