"""The tests, one folder for each package of the product."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The repository."""
