"""Ray: what to compute, where, and how it survives faults. Joins attribution to storage."""
