"""The search index over clips."""
