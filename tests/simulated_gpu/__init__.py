"""Tests on a simulated CUDA device; see ``device.cpp``. Run by ``make test-simulated-gpu``."""
