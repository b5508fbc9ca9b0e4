"""The fusion transformer, its audio network and the baselines."""
