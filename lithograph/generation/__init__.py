"""The commands ``lithograph generate`` and ``lithograph edit``."""
