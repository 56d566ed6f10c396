"""How the engine finds each kind of parameter's gradient per example, one kind per file."""
