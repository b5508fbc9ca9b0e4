"""From features and sentences to batches."""
