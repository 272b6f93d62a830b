"""Figures of a run and of its maps."""
