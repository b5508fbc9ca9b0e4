"""The combinatorial loss and the training loop."""
