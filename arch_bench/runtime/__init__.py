"""Processes, devices, precision and what else a measurement runs on."""
