"""The tests, in the rooms of the package that they test."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
