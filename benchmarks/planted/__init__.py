"""Data whose skills are known by construction, and the small models that learn them."""
