"""Intervals, paired tests and power, on arrays alone."""
