"""From unit gradient rows to a tree of quanta."""
