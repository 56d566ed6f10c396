"""What differs between checkpoints and between models: emergence, comparison, lesions."""
