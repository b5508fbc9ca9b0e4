"""Measuring latency, throughput and memory."""
