"""Training of one cell with Lightning."""
