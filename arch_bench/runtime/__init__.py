"""Processes, devices, precision and other parts of a measurement's environment."""
