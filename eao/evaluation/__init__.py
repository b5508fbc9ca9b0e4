"""Embedding data sets and measuring retrieval."""
