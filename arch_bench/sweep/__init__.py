"""Protocols, searches and plans for the cells of one command."""
