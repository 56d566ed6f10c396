"""A collection from its configuration to its rows: ingest, select, plan, collect."""
