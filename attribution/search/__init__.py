"""Nearest rows: the exact scan, indexes that propose, k-means over rows that stream by. FAISS is here alone."""
