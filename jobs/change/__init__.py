"""Several models on the same units: checkpoints of one training, and one model against another."""
