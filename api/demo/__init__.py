"""The demonstration: a small model of the Python standard library, trained and explained in minutes."""
