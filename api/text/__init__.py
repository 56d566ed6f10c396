"""Answers as plain text for the terminal, and as JSON."""
