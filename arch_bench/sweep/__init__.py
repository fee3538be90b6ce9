"""The cells of one command: protocols, searches, the plan."""
