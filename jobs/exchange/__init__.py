"""Rows, quanta and scores out to other programs' formats, and other programs' stores in."""
