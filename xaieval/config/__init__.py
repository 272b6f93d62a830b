"""Every choice of a measurement, by name, without torch."""
