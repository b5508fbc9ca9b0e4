"""Kernels with CPU paths and plain references."""
