"""Serving exported encoders."""
