"""The commands, a file per theme: each parses its flags, calls one function of the library, and prints its result."""
