"""Ledgers on disk and in Hugging Face's Trainer."""
