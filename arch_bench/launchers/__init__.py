"""Where the cells of a sweep run: one file per engine."""
