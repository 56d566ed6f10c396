"""Quanta of a row set: clustered, stored, opened again, asked at any grain, traced to."""
