"""Schema, composition, instantiation and one-line errors of the configuration."""
