"""Launchers that run the cells of a sweep: one file per engine."""
