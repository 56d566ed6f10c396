"""Runs on disk: manifest, documents, row sets, checked bytes. No models, no Ray, no FAISS."""
