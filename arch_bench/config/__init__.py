"""The composed configuration: its schema, how it is composed, what it builds, and its errors in one line."""
