"""The suites of benchmarks."""
