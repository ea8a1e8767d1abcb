"""Tests of ``service.access``."""
