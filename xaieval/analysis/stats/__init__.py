"""Intervals, paired tests, sequential tests and power, for plain arrays."""
